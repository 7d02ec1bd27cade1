"""Who asks: the person behind a token, with what the token may do."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.domain.states import TokenKind, TokenScope, UserRole


@dataclass(frozen=True, slots=True)
class Viewer:
    """A signed-in person. Rights are the role's, narrowed by the token's scopes."""

    user_id: UUID
    token_id: str
    role: UserRole
    scopes: frozenset[TokenScope]
    kind: TokenKind = TokenKind.PERSONAL
    #: When the token ends; None: not by itself.
    expires_at: datetime | None = None

    @property
    def sees_all(self) -> bool:
        """Administrators and observers see every bot; members their own."""
        return self.role in (UserRole.ADMIN, UserRole.OBSERVER)

    @property
    def writes_all(self) -> bool:
        return self.role is UserRole.ADMIN

    def may(self, scope: TokenScope) -> bool:
        """The token carries the scope and the role does not take it away again."""
        if self.role is UserRole.OBSERVER and scope not in (TokenScope.FLEET_READ, TokenScope.SOCIAL_READ):
            return False
        if scope is TokenScope.ADMIN and self.role is not UserRole.ADMIN:
            return False
        return scope in self.scopes

    def owns(self, owner: UUID) -> bool:
        """The viewer may change what belongs to `owner`."""
        return self.writes_all or self.user_id == owner
