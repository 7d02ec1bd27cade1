"""What a caller can mend."""

import strawberry

from app.domain.errors import Refusal
from app.graphql.types.enums import UserErrorCode


@strawberry.interface(description="What a caller can mend: shown beside the form field that caused it.")
class DisplayableError:
    code: UserErrorCode = strawberry.field(description="Stable word for programs.")
    message: str = strawberry.field(description="Sentence for people.")
    field: list[str] | None = strawberry.field(
        description="Path from the mutation's `input` to the value at fault; null when no single value is."
    )


@strawberry.type(description="An error a caller can mend by sending another input.")
class UserError(DisplayableError):
    @staticmethod
    def code_of(refusal: Refusal) -> UserErrorCode:
        return UserErrorCode(refusal.code)

    @classmethod
    def of(cls, refusal: Refusal) -> "UserError":
        return cls(code=cls.code_of(refusal), message=refusal.message, field=refusal.field)
