"""Who may do what: every root field of the schema, asked by everybody, has its expected answer in a table."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from app.db.engine import DB
from app.domain.ids import new_id
from app.domain.states import TokenKind, TokenScope, UserRole
from app.graphql.schema import schema
from app.services import accounts
from tests.graphql.people import ALL, ERRORS, Caller, answered, first, heard, house, opened, person, provider
from tests.journeys import documents as docs
from tests.journeys import story


class Expected(NamedTuple):
    """What each of them hears: a code, or what the answer is like."""

    anonymous: str
    stranger: str  # a member who owns nothing
    reader: str  # the owner, with a token that may only read
    observer: str
    owner: str
    admin: str


class Ask(NamedTuple):
    """One question about the owner's bot and provider."""

    document: str
    variables: Callable[["Things"], dict[str, Any]]


@dataclass
class Things:
    """What the owner has."""

    bot: dict[str, Any]
    provider: str
    owner: str
    token: str
    channel: str
    binding: str

    def without(self) -> "Things":
        """The same things under identities that nobody has."""
        bot, key = {**self.bot}, str(new_id())
        bot |= {"databaseId": key, "id": _id("Bot", key), "agentId": f"{self.bot['agentId']}x"}
        names = ("ModelProvider", "User", "AccessToken", "Channel", "Binding")
        return Things(bot, *[_id(name, str(new_id())) for name in names])


def _id(type_name: str, key: str) -> str:
    return base64.b64encode(f"{type_name}:{key}".encode()).decode()


def _mutation(name: str, what: str, /, **more: Any) -> Ask:
    type_name = f"{name[0].upper()}{name[1:]}Input"
    document = f"mutation($input: {type_name}!) {{ {name}(input: $input) {{ {what} {ERRORS} }} }}"
    return Ask(document, lambda things: {"input": {"botId": things.bot["id"], **more}})


def _about(name: str, what: str, thing: str, /, **more: Any) -> Ask:
    """A mutation of something that hangs on the bot."""
    ask = _mutation(name, what)
    return Ask(ask.document, lambda things: {"input": {f"{thing}Id": getattr(things, thing), **more}})


def _about_people(name: str, what: str, /, **given: Any) -> Ask:
    type_name = f"{name[0].upper()}{name[1:]}Input"
    document = f"mutation($input: {type_name}!) {{ {name}(input: $input) {{ {what} {ERRORS} }} }}"
    return Ask(document, lambda things: {"input": given})


NO, SIGN_IN, CLOSED, NONE, REFUSED = "FORBIDDEN", "UNAUTHENTICATED", "4403", "NOT_FOUND", "CREDENTIALS_REFUSED"
#: "seen": something came back; "empty": nothing did, and no error; "done": a mutation was not refused.
#: CONFLICT is how a bot that does not run answers whom it would speak with, and who has no password to change.
RIGHTS: dict[str, Expected] = {
    "Query.node": Expected(SIGN_IN, "empty", "seen", "seen", "seen", "seen"),
    "Query.nodes": Expected(SIGN_IN, "empty", "seen", "seen", "seen", "seen"),
    "Query.viewer": Expected("empty", "seen", "seen", "seen", "seen", "seen"),
    "Query.serverInfo": Expected("seen", "seen", "seen", "seen", "seen", "seen"),
    "Query.rateLimit": Expected("seen", "seen", "seen", "seen", "seen", "seen"),
    "Query.bot": Expected(SIGN_IN, "empty", "seen", "seen", "seen", "seen"),
    "Query.bots": Expected(SIGN_IN, "empty", "seen", "seen", "seen", "seen"),
    "Query.fleet": Expected(SIGN_IN, "seen", "seen", "seen", "seen", "seen"),
    "Query.channelProviders": Expected(SIGN_IN, "seen", "seen", "seen", "seen", "seen"),
    "Query.modelProviders": Expected(SIGN_IN, "seen", "seen", "seen", "seen", "seen"),
    "Query.accessTokens": Expected(SIGN_IN, "seen", "seen", "seen", "seen", "seen"),
    "Query.users": Expected(SIGN_IN, NO, NO, NO, NO, "seen"),
    "Query.auditEntries": Expected(SIGN_IN, NO, NO, NO, NO, "seen"),
    "Query.encryptionKeys": Expected(SIGN_IN, NO, NO, NO, NO, "seen"),
    "Mutation.keyRotationStart": Expected(SIGN_IN, NO, NO, NO, NO, "done"),
    "Mutation.signIn": Expected(REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED),
    "Mutation.signOut": Expected(SIGN_IN, "done", "done", "done", "done", "done"),
    "Mutation.passwordChange": Expected(SIGN_IN, "CONFLICT", "CONFLICT", "CONFLICT", "CONFLICT", "CONFLICT"),
    "Mutation.accessTokenCreate": Expected(SIGN_IN, "done", "done", "done", "done", "done"),
    "Mutation.accessTokenRevoke": Expected(SIGN_IN, NONE, "INVALID", NONE, "done", "done"),
    "Mutation.userCreate": Expected(SIGN_IN, NO, NO, NO, NO, "done"),
    "Mutation.userUpdate": Expected(SIGN_IN, NO, NO, NO, NO, "done"),
    "Mutation.botCreate": Expected(SIGN_IN, "done", NO, NO, "done", "done"),
    "Mutation.botUpdate": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.botDelete": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.botStart": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.botStop": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.botRestart": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.botTransfer": Expected(SIGN_IN, NO, NO, NO, NO, "done"),
    "Mutation.botsControl": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.channelCreate": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.channelUpdate": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.channelCredentialsSet": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.channelDelete": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    # The bot does not run, so there is nobody to ask who waits.
    "Mutation.pairingApprove": Expected(SIGN_IN, NONE, NO, NO, "CONFLICT", "CONFLICT"),
    "Mutation.pairingDismiss": Expected(SIGN_IN, NONE, NO, NO, "CONFLICT", "CONFLICT"),
    "Mutation.bindingCreate": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.bindingUpdate": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.bindingDelete": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.messageSend": Expected(SIGN_IN, NONE, NO, NO, "CONFLICT", "CONFLICT"),
    "Mutation.modelProviderSave": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Mutation.modelProviderDelete": Expected(SIGN_IN, NONE, NO, NO, "done", "done"),
    "Subscription.botStatus": Expected(CLOSED, NONE, "seen", "seen", "seen", "seen"),
    # The bot does not run, which the first and last step says.
    "Subscription.channelLogin": Expected(CLOSED, NONE, NO, NO, "seen", "seen"),
    "Subscription.keyRotation": Expected(CLOSED, NO, NO, NO, NO, NONE),
    "Subscription.room": Expected(CLOSED, NONE, "seen", "seen", "seen", "seen"),
}


#: How each is asked.
def _pairing(field: str) -> Ask:
    return Ask(
        f"mutation($input: PairingInput!) {{ {field}(input: $input) {{ channel {{ id }} {ERRORS} }} }}",
        lambda t: {"input": {"channelId": t.channel, "code": "ABCDEFGH"}},
    )


ASKS: dict[str, Ask] = {
    "Query.node": Ask("query($id: ID!) { node(id: $id) { id } }", lambda t: {"id": t.bot["id"]}),
    "Query.nodes": Ask(
        "query($ids: [ID!]!) { nodes(ids: $ids) { id } }", lambda t: {"ids": [t.bot["id"], t.provider, t.owner]}
    ),
    "Query.viewer": Ask("{ viewer { id email } }", lambda t: {}),
    "Query.rateLimit": Ask("{ rateLimit { limit remaining } }", lambda t: {}),
    "Query.serverInfo": Ask("{ serverInfo { version } }", lambda t: {}),
    "Query.bot": Ask("query($by: BotBy!) { bot(by: $by) { id } }", lambda t: {"by": {"agentId": t.bot["agentId"]}}),
    "Query.bots": Ask(
        "query($f: BotFilter) { bots(filter: $f) { nodes { id } totalCount } }",
        lambda t: {"f": {"ownerId": [t.owner], "search": t.bot["agentId"]}},
    ),
    "Query.fleet": Ask("{ fleet { statusCounts { status count } hosts { nodes { id } } } }", lambda t: {}),
    "Query.channelProviders": Ask("{ channelProviders { name } }", lambda t: {}),
    "Query.modelProviders": Ask("{ modelProviders { id } }", lambda t: {}),
    "Query.accessTokens": Ask("{ accessTokens { nodes { id } totalCount } }", lambda t: {}),
    "Query.users": Ask("{ users { nodes { id } totalCount } }", lambda t: {}),
    "Query.auditEntries": Ask("{ auditEntries { nodes { id } totalCount } }", lambda t: {}),
    "Query.encryptionKeys": Ask("{ encryptionKeys { version } }", lambda t: {}),
    "Mutation.keyRotationStart": _about_people("keyRotationStart", "keyRotation { id }", reason="x"),
    "Subscription.keyRotation": Ask(
        "subscription($id: ID!) { keyRotation(id: $id) { id } }",
        lambda t: {"id": _id("KeyRotation", "018f3c1e-0000-7000-8000-000000000001")},
    ),
    "Mutation.signIn": _about_people("signIn", "accessToken", email="nobody@example.com", password="x" * 12),
    "Mutation.signOut": _about_people("signOut", "viewer { id }"),
    "Mutation.passwordChange": _about_people(
        "passwordChange", "viewer { id }", currentPassword="x" * 12, newPassword="correct horse battery"
    ),
    "Mutation.accessTokenCreate": _about_people("accessTokenCreate", "secret", name="x", scopes=["FLEET_READ"]),
    "Mutation.accessTokenRevoke": Ask(
        f"mutation($input: AccessTokenRevokeInput!) {{ accessTokenRevoke(input: $input) "
        f"{{ revokedAccessTokenId {ERRORS} }} }}",
        lambda t: {"input": {"accessTokenId": t.token}},
    ),
    "Mutation.userCreate": Ask(
        f"mutation($input: UserCreateInput!) {{ userCreate(input: $input) {{ user {{ id }} {ERRORS} }} }}",
        lambda t: {"input": {"name": "New", "email": f"{t.bot['agentId']}@example.com", "password": "correct horse"}},
    ),
    "Mutation.userUpdate": Ask(
        f"mutation($input: UserUpdateInput!) {{ userUpdate(input: $input) {{ user {{ id }} {ERRORS} }} }}",
        lambda t: {"input": {"userId": t.owner, "name": "Olga"}},
    ),
    "Mutation.botCreate": Ask(
        f"mutation($input: BotCreateInput!) {{ botCreate(input: $input) {{ bot {{ id }} {ERRORS} }} }}",
        lambda t: {"input": {"name": "New", "model": "local/echo"}},
    ),
    "Mutation.botUpdate": _mutation("botUpdate", "bot { id }", description="changed"),
    "Mutation.botDelete": _mutation("botDelete", "deletedBotId"),
    "Mutation.botStart": _mutation("botStart", "bot { id }", wait=False),
    "Mutation.botStop": _mutation("botStop", "bot { id }"),
    "Mutation.botRestart": _mutation("botRestart", "bot { id }", wait=False),
    "Mutation.botTransfer": Ask(
        f"mutation($input: BotTransferInput!) {{ botTransfer(input: $input) {{ bot {{ id }} {ERRORS} }} }}",
        lambda t: {"input": {"botId": t.bot["id"], "ownerId": t.owner}},
    ),
    "Mutation.botsControl": Ask(
        f"mutation($input: BotsControlInput!) {{ botsControl(input: $input) "
        f"{{ bots {{ id }} results {{ bot {{ id }} userError {{ code message field }} }} {ERRORS} }} }}",
        lambda t: {"input": {"botIds": [t.bot["id"]], "action": "STOP"}},
    ),
    "Mutation.channelCreate": _mutation(
        "channelCreate", "channel { id }", provider="telegram", name="Second", accountId="second", enabled=False
    ),
    "Mutation.channelUpdate": _about("channelUpdate", "channel { id }", "channel", name="Changed"),
    "Mutation.channelCredentialsSet": _about("channelCredentialsSet", "channel { id }", "channel", credentials={}),
    "Mutation.pairingApprove": _pairing("pairingApprove"),
    "Mutation.pairingDismiss": _pairing("pairingDismiss"),
    "Mutation.channelDelete": _about("channelDelete", "deletedChannelId", "channel"),
    "Mutation.bindingCreate": _mutation("bindingCreate", "binding { id }", peerKind="group"),
    "Mutation.bindingUpdate": _about("bindingUpdate", "binding { id }", "binding", priority=1),
    "Mutation.bindingDelete": _about("bindingDelete", "deletedBindingId", "binding"),
    "Mutation.messageSend": _mutation("messageSend", "message { text }", text="Hello"),
    "Mutation.modelProviderSave": Ask(
        docs.PROVIDER_SAVE,
        lambda t: {"input": {"id": t.provider, "name": f"p{t.bot['agentId']}", "models": [{"id": "n"}]}},
    ),
    "Mutation.modelProviderDelete": Ask(
        f"mutation($id: ID!) {{ modelProviderDelete(input: {{id: $id}}) {{ deletedId {ERRORS} }} }}",
        lambda t: {"id": t.provider},
    ),
    "Subscription.botStatus": Ask(
        "subscription($ids: [ID!]) { botStatus(botIds: $ids) { kind } }", lambda t: {"ids": [t.bot["id"]]}
    ),
    "Subscription.channelLogin": Ask(
        "subscription($id: ID!) { channelLogin(channelId: $id) { state } }", lambda t: {"id": t.channel}
    ),
    "Subscription.room": Ask(
        "subscription($names: [String!]!) { room(names: $names) { event } }",
        lambda t: {"names": [f"bot:{t.bot['databaseId']}:status"]},
    ),
}


#: What concerns no object that is there already.
ABOUT_NOTHING = {
    "Mutation.keyRotationStart",
    "Mutation.botCreate",
    "Mutation.signIn",
    "Mutation.signOut",
    "Mutation.passwordChange",
    "Mutation.accessTokenCreate",
    "Mutation.userCreate",
}


def root_fields() -> set[str]:
    roots = (schema._schema.query_type, schema._schema.mutation_type, schema._schema.subscription_type)
    return {f"{root}.{field}" for root in roots if root for field in root.fields}


def test_every_root_field_has_its_row_in_the_table() -> None:
    assert root_fields() == RIGHTS.keys() == ASKS.keys()


async def first_of(api: Caller, ask: Ask, things: Things, *, is_stream: bool) -> dict[str, Any]:
    variables = ask.variables(things)
    return await (first(api, ask.document, **variables) if is_stream else api.ask(ask.document, **variables))


def outcome(answer: dict[str, Any]) -> str:
    if "errors" in answer:
        return answer["errors"][0]["extensions"]["code"]
    (value,) = answer["data"].values()
    if isinstance(value, dict) and "userErrors" in value:
        return value["userErrors"][0]["code"] if value["userErrors"] else "done"
    if isinstance(value, dict) and "nodes" in value:
        value = value["nodes"]
    is_empty = not any(value) if isinstance(value, list) else value is None
    return "empty" if is_empty else "seen"


async def people(api: Caller) -> Expected:
    """One client for each column of the table."""
    owner_id = await accounts.add_user("Olga", UserRole.MEMBER)
    reading = frozenset({TokenScope.FLEET_READ})
    return Expected(
        anonymous=api.signed_in(None),
        stranger=await person(api, "Sven"),
        reader=api.signed_in(await accounts.add_token(owner_id, "reader", reading)),
        observer=await person(api, "Ines", UserRole.OBSERVER),
        owner=api.signed_in(await accounts.add_token(owner_id, "all", ALL)),
        admin=api,
    )  # type: ignore[arg-type]


async def belongings(owner: Caller, number: int) -> Things:
    bot = await story.make_bot(owner, agentId=f"b{number:03}")
    own = await provider(owner, f"pb{number:03}", models=[{"id": "m"}])
    viewer = await owner.run("{ viewer { id } }")
    return Things(bot, own["id"], viewer["id"], await a_token(owner), *await attached(owner, bot))


async def attached(owner: Caller, bot: dict[str, Any]) -> tuple[str, str]:
    """A channel and a binding on the bot."""
    given = {"botId": bot["id"], "provider": "telegram", "name": "Hidden"}
    made = await owner.run(ASKS["Mutation.channelCreate"].document, input=given)
    bound = await owner.run(ASKS["Mutation.bindingCreate"].document, input={"botId": bot["id"]})
    return made["channel"]["id"], bound["binding"]["id"]


async def a_token(owner: Caller) -> str:
    document = ASKS["Mutation.accessTokenCreate"].document.replace("secret", "accessToken { id }")
    scopes = ["FLEET_READ", "FLEET_WRITE"]
    return (await owner.run(document, input={"name": "x", "scopes": scopes}))["accessToken"]["id"]


async def renewed(owner: Caller, old: Things, number: int, name: str) -> Things:
    """The same with a new one of what the mutation will change."""
    if "Provider" in name:
        new = await provider(owner, f"pb{number:03}", models=[{"id": "m"}])
        return replace(old, bot={**old.bot, "agentId": f"b{number:03}"}, provider=new["id"])
    if "accessToken" in name:
        return replace(old, token=await a_token(owner))
    bot = await story.make_bot(owner, agentId=f"b{number:03}")
    if "channel" in name or "binding" in name:
        channel, binding = await attached(owner, bot)
        return replace(old, bot=bot, channel=channel, binding=binding)
    return replace(old, bot=bot)


async def test_everybody_gets_what_the_table_says(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, OPENCLAW_MAX_BOTS="200") as api:
        who: Any = await people(api)
        things = await belongings(who.owner, 0)
        made = 0
        wrong: dict[str, Any] = {}
        for name, expected in RIGHTS.items():
            for role, wanted in expected._asdict().items():
                mine = things
                if name.startswith("Mutation.") and wanted == "done":
                    made += 1
                    mine = await renewed(who.owner, things, made, name)
                caller = getattr(who, role)
                if name == "Mutation.signOut" and caller.token:
                    caller = caller.signed_in(await twin(caller.token))
                answer = await first_of(caller, ASKS[name], mine, is_stream=name.startswith("Subscription."))
                if outcome(answer) != wanted:
                    wrong[f"{name} by {role}"] = answer
        assert wrong == {}


async def twin(token: str) -> str:
    """Another token of the same person, for a test to use up."""
    viewer = await accounts.viewer_of(token)
    assert viewer is not None
    return await accounts.add_token(viewer.user_id, "twin", viewer.scopes)


def _key(identity: str) -> str:
    return base64.b64decode(identity).decode().split(":", 1)[1]


async def test_what_belongs_to_others_answers_as_what_is_not_there_does(
    database: dict[str, Any], tmp_path: Path
) -> None:
    def shown(answer: dict[str, Any], things: Things) -> str:
        """The answer's text, with what differs by nature taken out."""
        for error in answer.get("errors", []):
            assert error["extensions"].pop("requestId")
        text = json.dumps(answer)
        own = (things.provider, things.owner, things.token, things.channel, things.binding)
        for known in (*map(str, things.bot.values()), *own):
            text = text.replace(known, "-")
        return text

    async with house(database, tmp_path) as api:
        who: Any = await people(api)
        things = await belongings(who.owner, 0)
        tables = ("bot", "model_provider", "channel", "binding")
        rows = [f"SELECT * FROM {table} ORDER BY id" for table in tables]
        before = [await DB.fetch(each) for each in rows]
        compared = 0
        for name, ask in ASKS.items():
            if name in ABOUT_NOTHING or not ask.variables(things):
                continue
            missing, is_stream = things.without(), name.startswith("Subscription.")
            for caller in (who.stranger, await person(api, "Nina", scopes=frozenset())):
                theirs = shown(await first_of(caller, ask, things, is_stream=is_stream), things)
                nobody_s = shown(await first_of(caller, ask, missing, is_stream=is_stream), missing)
                assert theirs == nobody_s, name
                compared += 1
        assert compared >= 2 * 14
        assert before == [await DB.fetch(each) for each in rows]


async def test_a_token_without_scopes_may_nothing_but_say_who_it_is(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bare = await person(api, "Nina", UserRole.ADMIN, scopes=frozenset())
        things = await belongings(api, 0)
        free = {
            "Query.viewer": "seen",
            "Query.serverInfo": "seen",
            "Query.rateLimit": "seen",
            "Query.node": "empty",
            "Query.nodes": "empty",
            "Query.accessTokens": "seen",
            "Query.channelProviders": "seen",
            "Mutation.signIn": REFUSED,
            "Mutation.signOut": "done",
            "Mutation.passwordChange": "CONFLICT",
            "Mutation.accessTokenCreate": "INVALID",
            "Mutation.accessTokenRevoke": NONE,
        }
        for name, ask in ASKS.items():
            caller = bare.signed_in(await twin(bare.token or "")) if name == "Mutation.signOut" else bare
            answer = await first_of(caller, ask, things, is_stream=name.startswith("Subscription."))
            wanted = free.get(name, NONE if name == "Subscription.room" else NO)
            assert outcome(answer) == wanted, (name, answer)


async def test_anonymous_callers_read_health_and_nothing_of_the_house(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        nobody = api.signed_in(None)
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/playground", 200)):
            assert (await api.http.get(f"{api.url}{path}", follow_redirects=True)).status_code == status
        both = await nobody.ask(
            "{ serverInfo { version schemaHash subscriptionProtocols eventBus time } viewer { id } }"
        )
        assert both["data"]["viewer"] is None
        assert "errors" not in both
        # A public field beside a closed one: each gets its own answer.
        mixed = await nobody.ask('{ serverInfo { version } node(id: "x") { id } }')
        assert (
            mixed["data"] == {"serverInfo": both["data"]["serverInfo"] | {}, "node": None}
            or mixed["data"]["node"] is None
        )
        assert [error["extensions"]["code"] for error in mixed["errors"]] == [SIGN_IN]
        assert mixed["errors"][0]["extensions"]["requestId"]


def tampered(token: str) -> dict[str, str]:
    """Tokens that are almost one, and what people send instead."""
    kind, identity, secret = token[:5], token[5:17], token[18:61]

    def signed(body: str) -> str:
        return body + accounts._checksum(body)

    other = "A" if secret[0] != "A" else "B"
    return {
        "cut short": token[:-1],
        "too long": token + "0",
        "wrong checksum": token[:-1] + ("0" if token[-1] != "0" else "1"),
        "another secret": signed(f"{kind}{identity}_{other}{secret[1:]}"),
        "another id": signed(f"{kind}{'a' * 12}_{secret}"),
        "another kind": f"cn_x_{token[5:]}",
        "in capitals": token.upper(),
        "two of them": f"{token}, Bearer {token}",
        "space inside": token[:20] + " " + token[20:],
        "the id alone": token[:17],
        "nothing": "",
        "a hash": hashlib.sha256(secret.encode()).hexdigest(),
        "sql": "' OR 1=1 --",
        "sql in the id": signed(f"{kind}' or true --_{secret}"),
        "wildcards": "cn_p_____________" + "_" * 44,
        "null": "null",
        "huge": "cn_p_" + "a" * 15_000,
        "a json": '{"token": true}',
    }


async def test_a_token_that_does_not_count_is_no_token(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia = await accounts.add_user("Mia", UserRole.MEMBER)
        good = await accounts.add_token(mia, "good", ALL)
        gone = await accounts.add_user("Gone", UserRole.ADMIN)
        tokens = tampered(good) | {
            "expired": await accounts.add_token(mia, "expired", ALL, life=timedelta(seconds=-1)),
            "revoked": await accounts.add_token(mia, "revoked", ALL),
            "of a disabled person": await accounts.add_token(gone, "disabled", ALL),
            "unknown": accounts.make_token(TokenKind.PERSONAL)[0],
        }
        await DB.fetch("UPDATE access_token SET revoked_at = now() WHERE name = 'revoked'")
        await DB.fetch("UPDATE app_user SET disabled_at = now() WHERE id = $1", gone)
        assert (await api.signed_in(good).run("{ viewer { name } }"))["name"] == "Mia"
        forever = await accounts.add_token(mia, "forever", ALL, life=None)
        assert (await api.signed_in(forever).run("{ viewer { name } }"))["name"] == "Mia"

        async def check(what: str, token: str) -> None:
            caller = api.signed_in(token)
            answer = await caller.ask("{ viewer { id } serverInfo { version } }")
            assert answer["data"]["viewer"] is None, what
            assert answer["data"]["serverInfo"], what
            refused = await caller.ask("{ modelProviders { id } }")
            assert outcome(refused) == SIGN_IN, what
            assert refused["data"] is None
            ask, things = ASKS["Subscription.botStatus"], Things({"id": "x"}, "", "", "", "", "")
            assert outcome(await first_of(caller, ask, things, is_stream=True)) == CLOSED, what

        await asyncio.gather(*[check(what, token) for what, token in tokens.items()])
        used = await DB.fetch("SELECT name FROM access_token WHERE last_used_at IS NOT NULL ORDER BY name")
        assert [row["name"] for row in used] == ["first sign-in", "forever", "good"]


async def test_a_token_is_taken_from_its_header_and_nowhere_else(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        assert api.token

        async def who(headers: dict[str, str] | None = None, path: str = "/graphql", **more: Any) -> Any:
            body = {"query": "{ viewer { name } }", **more}
            answer = await api.http.post(f"{api.url}{path}", json=body, headers=headers)
            return answer.json()["data"]["viewer"]

        for scheme in ("Bearer ", "bearer ", "BEARER ", "Bearer   "):
            assert (await who({"authorization": scheme + api.token}))["name"] == "Administrator", scheme
        for header in ("", api.token, f"Token {api.token}", f"Basic {api.token}", f"Bearer{api.token}", "Bearer"):
            assert await who({"authorization": header}) is None, header
        assert await who({"cookie": f"token={api.token}; authorization=Bearer {api.token}"}) is None
        assert await who({"x-authorization": f"Bearer {api.token}"}) is None
        assert await who(path=f"/graphql?token={api.token}&access_token={api.token}") is None
        assert await who(extensions={"authorization": f"Bearer {api.token}"}) is None


ENDS = [
    "UPDATE access_token SET revoked_at = now() WHERE",
    "UPDATE access_token SET expires_at = now() WHERE",
    "DELETE FROM access_token WHERE",
    "UPDATE app_user SET disabled_at = now() FROM access_token WHERE app_user.id = access_token.user AND",
]


async def test_a_socket_whose_token_ends_may_nothing_more(database: dict[str, Any], tmp_path: Path) -> None:
    fields = ["{ modelProviders { name } }", "{ bots { totalCount } }"]
    closed = [
        *fields,
        "subscription { botStatus { kind } }",
        f'mutation {{ botDelete(input: {{botId: "x"}}) {{ {ERRORS} }} }}',
    ]

    async def ask(socket: Any, number: int, document: str) -> dict[str, Any]:
        await socket.send(json.dumps({"id": str(number), "type": "subscribe", "payload": {"query": document}}))
        answer = await heard(socket)
        assert answer["id"] == str(number)
        if answer["type"] != "error":
            assert await heard(socket) == {"id": str(number), "type": "complete"}
        return answered(answer)

    async with house(database, tmp_path) as api:
        for end in ENDS:
            mia = await person(api)
            async with opened(mia) as socket:
                assert await heard(socket) == {"type": "connection_ack"}
                for number, document in enumerate(fields):
                    assert "errors" not in await ask(socket, number, document)
                assert mia.token is not None
                await DB.fetch(f"{end} access_token.id = $1", mia.token[5:17])
                for number, document in enumerate(closed, 10):
                    answer = await ask(socket, number, document)
                    assert answer["data"] is None
                    assert [error["extensions"]["code"] for error in answer["errors"]] == [SIGN_IN], (end, document)
                assert await ask(socket, 20, "{ viewer { name } }") == {"data": {"viewer": None}}
            assert outcome(await mia.ask("{ bots { totalCount } }")) == SIGN_IN
