"""What the engine promises beyond Piccolo's: nothing leaks, savepoints are real, contexts are not inherited."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from piccolo.columns import JSONB, Integer
from piccolo.engine.exceptions import TransactionError
from piccolo.table import Table

from app.db import engine
from app.db.engine import Engine
from app.domain.errors import SettingsError, Unavailable
from tests.conftest import administrator

Connect = dict[str, Any]


class BoomError(Exception):
    """What the tests raise."""


@pytest.fixture
async def db(database: Connect) -> AsyncGenerator[Engine, None]:
    db = Engine()
    await db.open(database, max_size=3)
    await db.fetch("CREATE TABLE note (id int PRIMARY KEY, body jsonb)")
    yield db
    assert lent(db) == 0
    await db.close()


def lent(db: Engine) -> int:
    return db.pool.get_size() - db.pool.get_idle_size()


async def write(db: Engine, number: int) -> None:
    await db.fetch("INSERT INTO note (id) VALUES ($1)", number)


async def written(db: Engine) -> list[int]:
    return [row["id"] for row in await db.fetch("SELECT id FROM note ORDER BY id")]


async def write_together(db: Engine, *numbers: int) -> None:
    async with db.transaction():
        for number in numbers:
            await write(db, number)


@asynccontextmanager
async def failing(db: Engine) -> AsyncGenerator[None, None]:
    """A transaction whose block ends in an error, which comes out of it."""
    with suppress(BoomError):
        async with db.transaction():
            yield
            raise BoomError
        pytest.fail("the transaction swallowed the error")


async def test_cancelled_transactions_give_their_connections_back(db: Engine) -> None:
    async def work(number: int, began: anyio.Event) -> None:
        async with db.transaction():
            await write(db, number)
            began.set()
            await db.fetch("SELECT pg_sleep(60)")

    with anyio.fail_after(30):
        for number in range(13):
            async with anyio.create_task_group() as group:
                began = anyio.Event()
                group.start_soon(work, number, began)
                await began.wait()
                group.cancel_scope.cancel()
            assert lent(db) == 0
    assert await written(db) == []


async def test_a_context_can_begin_anew_after_its_transaction_was_cancelled(db: Engine) -> None:
    with anyio.CancelScope() as scope:
        async with db.transaction():
            await write(db, 1)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert db.current() is None
    async with db.transaction():
        await write(db, 2)
    assert await written(db) == [2]


async def test_a_cancellation_that_comes_after_the_last_statement_still_commits(db: Engine) -> None:
    with anyio.CancelScope() as scope:
        async with db.transaction():
            await write(db, 1)
            scope.cancel()
    assert await written(db) == [1]


async def test_a_cancelled_task_of_asyncio_gives_its_connection_back(db: Engine) -> None:
    began = asyncio.Event()

    async def work() -> None:
        async with db.transaction(), db.transaction():
            began.set()
            await db.fetch("SELECT pg_sleep(60)")

    task = asyncio.create_task(work())
    await began.wait()
    task.cancel()
    with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
        await task
    assert lent(db) == 0


async def test_cancelled_queries_give_their_connections_back(db: Engine) -> None:
    for _ in range(5):
        with anyio.move_on_after(0.01):
            await db.fetch("SELECT pg_sleep(60)")
        assert lent(db) == 0


async def test_waiting_for_a_connection_can_be_cancelled(db: Engine) -> None:
    async with db.transaction():
        with anyio.move_on_after(0.05) as scope:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(hold, db)
        assert scope.cancelled_caught
        assert lent(db) == 1


async def hold(db: Engine) -> None:
    connection = await db.acquire()
    try:
        await anyio.sleep_forever()
    finally:
        await db.give_back(connection)


async def test_an_error_rolls_back_and_stays_itself(db: Engine) -> None:
    async with failing(db):
        await write(db, 1)
    assert await written(db) == []


async def test_an_inner_transaction_is_a_savepoint(db: Engine) -> None:
    async with db.transaction():
        await write(db, 1)
        with pytest.raises(asyncpg.UniqueViolationError):
            await write_together(db, 2, 1)
        async with db.transaction():
            await write(db, 3)
            async with failing(db):
                await write(db, 4)
    assert await written(db) == [1, 3]


async def test_a_savepoint_that_cannot_be_released_leaves_the_outer_transaction_usable(db: Engine) -> None:
    async with db.transaction():
        await write(db, 1)
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await swallow_an_error(db)
        await write(db, 2)
    assert await written(db) == [1, 2]


async def test_a_transaction_may_refuse_to_be_nested(db: Engine) -> None:
    async with db.transaction():
        with pytest.raises(TransactionError):
            db.transaction(allow_nested=False)


async def test_an_error_that_was_swallowed_is_not_mistaken_for_a_commit(db: Engine) -> None:
    await write(db, 1)
    told: list[str] = []
    with pytest.raises(TransactionError):
        await swallow_an_error(db, lambda: told.append("never"))
    assert (told, await written(db)) == ([], [1])


async def swallow_an_error(db: Engine, callback: Callable[[], None] = lambda: None) -> None:
    async with db.transaction() as transaction:
        transaction.on_commit(callback)
        await write(db, 2)
        with pytest.raises(asyncpg.UniqueViolationError):
            await write(db, 1)


async def test_a_task_ignores_a_finished_transaction_it_inherited(db: Engine) -> None:
    finished = anyio.Event()

    async def later() -> None:
        await finished.wait()
        await write(db, 2)

    async with db.transaction():
        task = asyncio.create_task(later())
        await write(db, 1)
    finished.set()
    await task
    assert await written(db) == [1, 2]


async def test_a_task_is_refused_an_active_transaction_of_another_task(db: Engine) -> None:
    async with db.transaction():
        for intrusion in (write(db, 1), begin(db)):
            with pytest.raises(TransactionError):
                await asyncio.create_task(intrusion)
        await write(db, 2)
    assert await written(db) == [2]


async def begin(db: Engine) -> None:
    async with db.transaction():
        pass


async def test_a_task_started_in_a_finished_savepoint_is_refused_the_outer_transaction(db: Engine) -> None:
    released = anyio.Event()

    async def later() -> None:
        await released.wait()
        await write(db, 1)

    async with db.transaction():
        async with db.transaction():
            task = asyncio.create_task(later())
        released.set()
        with pytest.raises(TransactionError):
            await task


async def test_callbacks_run_after_the_outermost_commit_and_in_order(db: Engine) -> None:
    told: list[str] = []
    async with db.transaction() as outer:
        outer.on_commit(lambda: told.append("outer"))
        async with db.transaction() as inner:
            inner.on_commit(lambda: told.append("inner"))
        db.after_commit(lambda: told.append("last"))
        async with failing(db), db.transaction():
            db.after_commit(lambda: told.append("never"))
        assert told == []
    assert told == ["outer", "inner", "last"]


async def test_a_rollback_forgets_its_callbacks(db: Engine) -> None:
    told: list[str] = []
    async with failing(db):
        db.after_commit(lambda: told.append("never"))
    async with db.transaction() as transaction:
        db.after_commit(lambda: told.append("never"))
        await transaction.rollback()
    assert told == []


async def test_a_callback_that_raises_does_not_keep_the_others_from_running(db: Engine) -> None:
    told: list[str] = []

    def fail() -> None:
        raise BoomError

    async def work() -> None:
        async with db.transaction():
            db.after_commit(fail)
            db.after_commit(lambda: told.append("second"))
            await write(db, 1)

    with pytest.raises(BoomError):
        await work()
    assert (told, await written(db)) == (["second"], [1])


async def test_without_a_transaction_a_callback_runs_at_once(db: Engine) -> None:
    told: list[str] = []
    db.after_commit(lambda: told.append("now"))
    assert told == ["now"]


async def test_rows_come_with_their_json_decoded(db: Engine) -> None:
    await db.fetch("INSERT INTO note VALUES (1, $1::jsonb), (2, NULL)", '{"a": [1, null]}')
    assert await db.fetch("SELECT id, body, body->>'a' AS text FROM note ORDER BY id") == [
        {"id": 1, "body": {"a": [1, None]}, "text": "[1, null]"},
        {"id": 2, "body": None, "text": None},
    ]
    assert await db.fetch_one("SELECT body FROM note WHERE id = 3") is None


async def test_piccolo_joins_the_transaction_and_keeps_its_own_json(db: Engine) -> None:
    class Note(Table, db=db, tablename="note"):
        id = Integer(primary_key=True)
        body = JSONB()

    async with failing(db):
        await Note.insert(Note(id=1, body={"a": 1}))
        assert await written(db) == [1]
    assert await Note.count() == 0
    await Note.insert(Note(id=2, body={"a": 1}))
    assert await Note.select(Note.body).output(load_json=True) == [{"body": {"a": 1}}]
    with pytest.raises(NotImplementedError):
        await Note.select().batch()


async def test_queries_are_counted(db: Engine) -> None:
    before = db.query_id
    async with db.transaction():
        await written(db)
    assert db.query_id - before == 1


async def test_a_wait_for_a_connection_ends(db: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CONNECTION_TIMEOUT", 0.1)
    connections = [await db.acquire() for _ in range(3)]
    with pytest.raises(Unavailable, match="does not answer"):
        await db.fetch("SELECT 1")
    for connection in connections:
        await db.give_back(connection)


async def test_a_failed_begin_gives_its_connection_back(database: Connect) -> None:
    db = Engine()
    await db.open({**database, "command_timeout": 0.2})
    row = await db.fetch_one("SELECT pg_backend_pid() AS pid")
    assert row is not None
    os.kill(row["pid"], signal.SIGSTOP)  # a server that is there and says nothing
    try:
        with pytest.raises(Unavailable):
            await begin(db)
    finally:
        os.kill(row["pid"], signal.SIGCONT)
    assert lent(db) == 0
    await begin(db)
    await db.close()


async def test_a_lost_connection_says_so_and_the_pool_recovers(db: Engine, database: Connect) -> None:
    row = await db.fetch_one("SELECT pg_backend_pid() AS pid")
    assert row is not None
    with pytest.raises(Unavailable):
        async with db.transaction():
            await db.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    assert lent(db) == 0
    async with db.transaction():
        await write(db, 1)
    assert await written(db) == [1]


async def test_a_mistake_in_a_query_is_not_called_an_absent_database(db: Engine) -> None:
    with pytest.raises(asyncpg.InterfaceError):
        await db.fetch("SELECT 1", "too many")
    with pytest.raises(asyncpg.DataError):
        await db.fetch("SELECT $1::int", "no number")
    with pytest.raises(asyncpg.UndefinedTableError):
        await db.fetch("SELECT * FROM nowhere")


async def test_a_statement_that_takes_too_long_is_given_up(db: Engine) -> None:
    with engine.patience(0.05), pytest.raises(Unavailable):
        await db.fetch("SELECT pg_sleep(60)")
    assert await written(db) == []


async def test_opening_where_nobody_listens_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await Engine().open({"host": str(tmp_path), "user": "nobody", "database": "none"})


async def test_opening_a_database_that_is_not_there_names_the_setting(database: Connect) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        await Engine().open({**database, "database": "nowhere"})


async def test_a_closed_engine_is_unavailable_and_opens_again(db: Engine, database: Connect) -> None:
    await db.close()
    with pytest.raises(Unavailable):
        await db.fetch("SELECT 1")
    await db.open(database)
    assert await written(db) == []


async def test_a_server_that_says_farewell_in_the_middle_is_away_and_nothing_else(
    db: Engine, database: Connect
) -> None:
    """Its farewell may still be read when the next statement comes, for which asyncpg has an error of its own."""
    answered, away = 0, 0
    done = anyio.Event()

    async def ask() -> None:
        nonlocal answered, away
        number = 0
        while not done.is_set():
            number += 1
            try:
                # A text that was not seen before is described first, which is a second round on the same connection.
                await db.fetch(f"SELECT {number} AS n{number}")
                answered += 1
            except Unavailable:
                away += 1
            await anyio.lowlevel.checkpoint()

    async with administrator(database) as admin, anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(ask)
        for _ in range(40):
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database["database"]
            )
        done.set()
    assert answered
    assert away
    assert await db.fetch_one("SELECT 1 AS n") == {"n": 1}
