"""Everything that can be changed: each writes a wish, wakes whoever carries it out, and answers with how things are."""

import strawberry

from app.graphql.mutations.bots import BotMutations
from app.graphql.mutations.channels import ChannelMutations
from app.graphql.mutations.keys import KeyMutations
from app.graphql.mutations.messages import MessageMutations
from app.graphql.mutations.models import ModelMutations
from app.graphql.mutations.pairing import PairingMutations
from app.graphql.mutations.people import PeopleMutations


@strawberry.type(
    description="Everything that can be changed. Each mutation takes one `input` and answers with one payload."
)
class Mutation(
    BotMutations, ChannelMutations, PairingMutations, MessageMutations, ModelMutations, PeopleMutations, KeyMutations
):
    """Put together from one class a noun."""
