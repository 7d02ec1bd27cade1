"""The connection to PostgreSQL: Piccolo's engine, made to survive cancellation, nesting and inherited contexts."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, NoReturn

import anyio
import asyncpg
from piccolo.engine.exceptions import TransactionError
from piccolo.engine.postgres import PostgresEngine, PostgresTransaction
from piccolo.querystring import QueryString

from app.domain.errors import SettingsError, Unavailable

#: Seconds a request waits for a free connection; also for one to be opened, or reset on its way back.
CONNECTION_TIMEOUT = 10.0
#: Seconds a statement may take, so that a lost network cannot hold a request for ever.
STATEMENT_TIMEOUT = 30.0
#: SQL texts whose JSON columns are remembered; far more than the code has.
REMEMBERED_STATEMENTS = 2000

#: The server went away, goes away, or has no room. A time-out is an OSError too.
_AWAY: tuple[type[BaseException], ...] = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # "not currently accepting connections"
    asyncpg.InsufficientResourcesError,
    # A failover left this server read-only, somebody cancelled the statement, or it lost a race for locks.
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)
#: What asyncpg raises for a connection that ended while it was being reset.
_LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
#: The server answers, and will not have us: only another setting helps.
_REFUSED: tuple[type[BaseException], ...] = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
    asyncpg.UndefinedObjectError,  # PostgreSQL 10 and older know no `jit`
)

_connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownVariableType]

Callback = Callable[[], None]

_patience: ContextVar[float] = ContextVar("patience", default=STATEMENT_TIMEOUT)


@contextmanager
def patience(seconds: float) -> Generator[None, None, None]:
    """Let the statements of this block take longer than `STATEMENT_TIMEOUT`, as a migration's may."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


@contextmanager
def _answering(connection: Any = None) -> Generator[None, None, None]:
    """Turn the many ways a database can be away into one error that clients know."""
    try:
        yield
    except _AWAY as error:
        raise Unavailable("the database does not answer") from error
    except asyncpg.InternalClientError as error:
        # The server's farewell was still being read when the next statement came: "cannot switch to state …".
        if connection is not None:
            _drop(connection)
        raise Unavailable("the database does not answer") from error
    except asyncpg.InterfaceError as error:
        # The class also covers mistakes of ours, such as a wrong number of arguments: those stay what they are.
        if connection is None or _is_gone(connection):
            raise Unavailable("the database does not answer") from error
        raise


def _is_gone(connection: Any) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has already taken a lost connection out of our hands
        return True


def _drop(connection: Any) -> None:
    """Cut a connection whose state is unknown; PostgreSQL then rolls back."""
    if not _is_gone(connection):
        connection.terminate()


class Transaction(PostgresTransaction):
    """`async with DB.transaction():` and, inside another one, a savepoint.

    Piccolo's own leaks its connection under anyio's cancellation, treats nesting as nothing, and is inherited by
    every task that is started inside it.
    """

    engine: "Engine"
    connection: Any

    # Piccolo's constructor would join whatever the context holds, also what has ended.
    def __init__(self, engine: "Engine", allow_nested: bool = True) -> None:
        self.engine = engine
        self._parent: Transaction | None = engine.current()
        if self._parent is not None and not allow_nested:
            raise TransactionError("a transaction is already active")
        self._savepoint_id = 0
        self._committed = False
        self._rolled_back = False
        self._callbacks: list[Callback] = []
        self._depth: int = self._parent._depth + 1 if self._parent else 0
        self._owner = asyncio.current_task()
        self.is_finished = False

    def on_commit(self, callback: Callback) -> None:
        """Call this right after the outermost commit; after a rollback, never."""
        self._callbacks.append(callback)

    @property
    def enclosing(self) -> "Transaction | None":
        """The transaction this one is a savepoint of."""
        return self._parent

    @property
    def is_foreign(self) -> bool:
        """Another task began it, and this one inherited it with its context."""
        return self._owner is not asyncio.current_task()

    async def __aenter__(self) -> "Transaction":
        self.connection = self._parent.connection if self._parent else await self.engine.acquire()
        try:
            await self.begin()
        except BaseException:
            await self._abandon()
            raise
        self._token = self.engine.current_transaction.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        # Shielded, because anyio cancels every await of a cancelled scope, also those of cleaning up.
        with anyio.CancelScope(shield=True):
            try:
                await self._end(is_failed=error is not None)
            finally:
                self.is_finished = True
                self.engine.current_transaction.reset(self._token)
                if self._parent is None:
                    await self.engine.give_back(self.connection)
        if self._committed:
            self._pass_on_callbacks()
        return False

    async def begin(self) -> None:
        # Shielded: a BEGIN that was cut off half-way leaves nobody knowing whether it happened.
        with anyio.CancelScope(shield=True):
            await self._execute("BEGIN" if self._parent is None else f"SAVEPOINT {self._name}")

    async def commit(self) -> None:
        if self._parent is not None:
            await self._execute(f"RELEASE SAVEPOINT {self._name}")
        elif await self._execute("COMMIT") != "COMMIT":
            # PostgreSQL answers ROLLBACK, and no error, when an earlier error was caught inside the block.
            self._rolled_back = True
            raise TransactionError("an error inside the transaction was caught, so nothing was committed")
        self._committed = True

    async def rollback(self) -> None:
        if self._parent is None:
            await self._execute("ROLLBACK")
        else:
            await self._execute(f"ROLLBACK TO SAVEPOINT {self._name}; RELEASE SAVEPOINT {self._name}")
        self._rolled_back = True

    @property
    def _name(self) -> str:
        return f"nested_{self._depth}"

    async def _execute(self, sql: str) -> str:
        with _answering(self.connection):
            return await self.connection.execute(sql)

    async def _end(self, *, is_failed: bool) -> None:
        if self._committed or self._rolled_back:  # by hand, inside the block
            return
        if is_failed:
            await self._undo()
            return
        try:
            await self.commit()
        except BaseException:
            # The commit's error is the news. A savepoint must go all the same, or the outer transaction is stuck.
            if not self._rolled_back:
                await self._undo()
            raise

    async def _undo(self) -> None:
        """Roll back, or drop the connection, which is a rollback too; the block's own error stays the news."""
        try:
            await self.rollback()
        except (Unavailable, TransactionError, asyncpg.PostgresError, asyncpg.InterfaceError):
            _drop(self.connection)

    async def _abandon(self) -> None:
        """End what may not even have begun: its connection is in an unknown state, so it is dropped."""
        self.is_finished = True
        if self._parent is None:  # a savepoint ends with the transaction around it
            _drop(self.connection)
            await self.engine.give_back(self.connection)

    def _pass_on_callbacks(self) -> None:
        if self._parent is not None:
            self._parent._callbacks.extend(self._callbacks)
            return
        # A stack runs all of them, also when one raises.
        with ExitStack() as stack:
            for callback in reversed(self._callbacks):
                stack.callback(callback)


class Engine(PostgresEngine):
    """PostgreSQL through one pool, opened in the lifespan and never before.

    A query joins the transaction of its own task. In a task that inherited another task's active transaction it
    raises `TransactionError`: two tasks cannot speak on one connection.
    """

    def __init__(self) -> None:
        super().__init__(config={})
        self.pool: Any = None
        self._json_columns: dict[str, tuple[str, ...]] = {}

    async def check_version(self) -> None:
        """Nothing: Piccolo's would connect in the constructor. `migrate.check_version` asks when there is a pool."""

    async def prep_database(self) -> None:
        """Nothing: extensions are the migrations' business."""

    async def open(self, dsn_or_kwargs: Mapping[str, Any], *, min_size: int = 1, max_size: int = 20) -> None:
        """Connect.

        Args:
            dsn_or_kwargs: Arguments of `asyncpg.connect`; `{"dsn": ...}` for a URL.

        Raises:
            Unavailable: Nobody answers there.
            SettingsError: Somebody does, and refuses.
        """
        if self.pool is not None:
            raise RuntimeError("the database is already open")
        self.config = _config(dsn_or_kwargs)
        try:
            with _answering():
                self.pool = await asyncpg.create_pool(**self.config, min_size=min_size, max_size=max_size)
        except _REFUSED as error:
            raise _refused(error) from error

    async def close(self) -> None:
        """Wait for the connections that are lent out, then disconnect."""
        pool = self.pool
        if pool is None:
            return
        try:
            # Leaving the scope by its deadline makes asyncpg terminate what is left.
            with anyio.move_on_after(CONNECTION_TIMEOUT, shield=True):
                await pool.close()
        finally:
            self.pool = None
            self._json_columns.clear()

    async def connect(self) -> Any:
        """A connection beside the pool, for LISTEN and for locks that last; the caller closes it."""
        with _answering():
            return await _connect(**self.config)

    # Piccolo gives a transaction one type for all engines, and calls this with and without an argument.
    def transaction(self, allow_nested: bool = True) -> Transaction:
        return Transaction(self, allow_nested)

    def transaction_exists(self) -> bool:
        return self.current() is not None

    def current(self) -> Transaction | None:
        """The transaction this task is in.

        Raises:
            TransactionError: The task inherited one that another task has not finished.
        """
        transaction: Any = self.current_transaction.get()
        while transaction is not None and transaction.is_finished:
            transaction = transaction.enclosing
        if transaction is not None and transaction.is_foreign:
            raise TransactionError("this task was started inside another task's transaction, and cannot use it")
        return transaction

    def after_commit(self, callback: Callback) -> None:
        """Call this once the current transaction is committed; at once when there is none."""
        transaction = self.current()
        if transaction is None:
            callback()
        else:
            transaction.on_commit(callback)

    async def fetch(self, sql: str, *args: object) -> list[dict[str, Any]]:
        """Run one statement with `$1` placeholders. JSON comes back decoded; it is handed in as text (`$1::jsonb`)."""
        self.get_query_id()
        async with self._connection() as connection:
            with _answering(connection):
                columns = await self._find_json_columns(connection, sql)
                records = await connection.fetch(sql, *args, timeout=_patience.get())
        return [_row(record, columns) for record in records]

    async def fetch_one(self, sql: str, *args: object) -> dict[str, Any] | None:
        """The first row, if there is one."""
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def run_querystring(self, querystring: QueryString, in_pool: bool = True) -> list[Any]:
        sql, args = querystring.compile_string(engine_type=self.engine_type)
        return await self._run(sql, args)

    async def run_ddl(self, ddl: str, in_pool: bool = True) -> list[Any]:
        return await self._run(ddl)

    async def batch(self, query: Any, batch_size: int = 100, node: str | None = None) -> NoReturn:
        raise NotImplementedError("Piccolo's batches swallow exceptions and leave the pool: read page by page")

    async def acquire(self) -> Any:
        """Borrow a connection; whoever does gives it back."""
        if self.pool is None:
            raise Unavailable("the database is not open")
        with _answering(), anyio.fail_after(CONNECTION_TIMEOUT):
            return await self.pool.acquire()

    async def give_back(self, connection: Any) -> None:
        # When the reset fails asyncpg drops the connection, and the pool opens a new one for the next caller.
        with anyio.CancelScope(shield=True), suppress(*_LOST):
            if self.pool is not None:
                await self.pool.release(connection, timeout=CONNECTION_TIMEOUT)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Any, None]:
        transaction = self.current()
        if transaction is not None:
            yield transaction.connection
            return
        connection = await self.acquire()
        try:
            yield connection
        except anyio.get_cancelled_exc_class():
            # Nobody waits for the answer any more, and a database that hangs would hold up giving it back as well.
            _drop(connection)
            raise
        finally:
            await self.give_back(connection)

    async def _run(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        self.get_query_id()
        async with self._connection() as connection:
            with _answering(connection):
                return await connection.fetch(sql, *args, timeout=_patience.get())

    async def _find_json_columns(self, connection: Any, sql: str) -> tuple[str, ...]:
        # A record does not know its types, and a codec on the pool would meet the text Piccolo has already dumped.
        # So each SQL text is described once.
        if sql not in self._json_columns:
            if len(self._json_columns) >= REMEMBERED_STATEMENTS:
                self._json_columns.clear()
            statement = await connection.prepare(sql, timeout=_patience.get())
            attributes = statement.get_attributes()
            self._json_columns[sql] = tuple(it.name for it in attributes if it.type.name in {"json", "jsonb"})
        return self._json_columns[sql]


def _config(given: Mapping[str, Any]) -> dict[str, Any]:
    # Compiling plans costs more than our short statements take.
    server_settings = {"application_name": "clawnet", "jit": "off", **given.get("server_settings", {})}
    return {
        "timeout": CONNECTION_TIMEOUT,
        "command_timeout": STATEMENT_TIMEOUT,
        **given,
        "server_settings": server_settings,
    }


def _refused(error: BaseException) -> SettingsError:
    return SettingsError(
        f"DATABASE_URL: the server refuses the connection ({error}); "
        "expected postgresql://user:password@host:port/database of PostgreSQL 14 or newer"
    )


def _row(record: Any, json_columns: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = dict(record)
    for name in json_columns:
        if row[name] is not None:
            row[name] = json.loads(row[name])
    return row


DB = Engine()
