"""The fleet and its machines, as the API shows them."""

from datetime import datetime

import strawberry

from app.domain.states import BotStatus, FleetHostState
from app.graphql.context import Info
from app.graphql.cost import Cost
from app.graphql.types import node, page
from app.graphql.types.page import After, Before, First, Last, PageInfo
from app.graphql.types.room import BigInt
from app.services import fleet
from app.services.pages import Page


@strawberry.type(description="A machine that runs bots.")
class FleetHost(node.Node):
    name: str = strawberry.field(description="Name of the machine.")
    state: FleetHostState = strawberry.field(description="Whether it takes part.")
    capacity: int = strawberry.field(description="Bots it can hold.")
    bot_count: int = strawberry.field(description="Bots running on it.")
    cpu_ratio: float = strawberry.field(description="Share of the processors in use, 0 to 1.")
    memory_bytes: BigInt = strawberry.field(description="Memory in use, in bytes.")
    version: str = strawberry.field(description="Version of ClawNet on it.")
    last_heartbeat_at: datetime = strawberry.field(description="When it last gave a sign of life.")

    @classmethod
    def from_row(cls, row: fleet.Host) -> "FleetHost":
        return cls(
            id=node.global_id("FleetHost", row.id),
            name=row.name,
            state=row.state,
            capacity=row.capacity,
            bot_count=row.bot_count,
            cpu_ratio=row.cpu_ratio,
            memory_bytes=BigInt(row.memory_bytes),
            version=row.version,
            last_heartbeat_at=row.heartbeat_at,
        )


@strawberry.type(description="One of the machines on a page.")
class FleetHostEdge:
    cursor: str = strawberry.field(description="Place on the list; give it as `after` or `before`.")
    node: FleetHost = strawberry.field(description="The item.")


@strawberry.type(description="A page of machines.")
class FleetHostConnection:
    edges: list[FleetHostEdge] = strawberry.field(description="The machines with their cursors.")
    nodes: list[FleetHost] = strawberry.field(description="The machines alone.")
    page_info: PageInfo = strawberry.field(description="Where the page starts and ends.")

    @strawberry.field(
        description="All machines, also those on other pages; counted only when asked for. "
        "Null where counting is too dear."
    )
    async def total_count(self, info: Info) -> int | None:
        return await info.context.services.fleet.count_hosts(info.context.caller)

    @classmethod
    def from_page(cls, found: Page[fleet.Host]) -> "FleetHostConnection":
        edges = [FleetHostEdge(cursor=cursor, node=FleetHost.from_row(row)) for cursor, row in found.items]
        return cls(edges=edges, nodes=[edge.node for edge in edges], page_info=PageInfo.of(found))


@strawberry.type(description="How many bots have a status.")
class BotStatusCount:
    status: BotStatus = strawberry.field(description="The status.")
    count: int = strawberry.field(description="Bots that have it.")


@strawberry.type(description="Places for starts: a start takes whole processors for seconds, so few run at once.")
class FleetStartSlots:
    total: int = strawberry.field(description="Starts that all ready machines together can run at once.")
    used: int = strawberry.field(description="Bots of the caller's view that are being started.")
    waiting: int = strawberry.field(description="Bots of the caller's view that wait for a place.")


@strawberry.type(description="The fleet in one look, as far as the caller may see its bots.")
class Fleet:
    status_counts: list[BotStatusCount] = strawberry.field(description="Number of bots in each status.")
    memory_bytes: BigInt = strawberry.field(
        description="Resident memory of the running bots, in bytes, as it was last measured."
    )
    start_slots: FleetStartSlots = strawberry.field(description="How many bots are being started, and wait to be.")

    @strawberry.field(
        description="Machines that run bots, by name. Administrators and observers see them; for others the list is "
        "empty.",
        directives=[Cost(weight=1, multipliers=["first", "last"])],
    )
    async def hosts(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> FleetHostConnection:
        stretch = page.stretch(first, after, last, before)
        return FleetHostConnection.from_page(await info.context.services.fleet.hosts(info.context.caller, stretch))

    @classmethod
    def from_row(cls, row: fleet.Summary) -> "Fleet":
        return cls(
            status_counts=[BotStatusCount(status=status, count=count) for status, count in row.counts.items()],
            memory_bytes=BigInt(row.memory_bytes),
            start_slots=FleetStartSlots(total=row.slots, used=row.starting, waiting=row.waiting),
        )
