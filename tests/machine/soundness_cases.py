"""Ways in which a key of local states can go silently wrong: what a simpler one (code position, live variables) would lose."""

from __future__ import annotations

import contextlib

from migrate_vma_impl.machine import traps
from tests.machine.toy import A, B, C, add, lock, read, system, unlock, write

CASES = {}


def case(make):
    CASES[make.__name__] = make
    return make


async def set_a():
    await write(A, 5)


@case
def a_pending_write_whose_value_is_dead_afterwards():
    async def store(value):
        await write(B, value)

    async def task():
        value = await read(A)
        value = value + 1
        await store(value)

    return system(task, set_a)


@case
def a_loop_whose_index_is_unused():
    async def task():
        for _ in range(3):
            await add(A, 1)

    return system(task)


@case
def a_loop_over_an_array():
    async def task():
        for entry in (1, 2, 3):
            await read(A)
            await add(B, entry)

    return system(task, set_a)


@case
def a_while_loop():
    async def task():
        count = 0
        while count < 3:
            await add(A, 1)
            count += 1

    return system(task)


@case
def a_value_that_only_an_exception_handler_reads():
    async def task():
        value = await read(A)
        try:
            if not await read(B):
                raise ValueError  # noqa: TRY301  (the case)
        except ValueError:
            await write(C, value)

    return system(task, set_a)


@case
def which_exception_a_finally_block_passes_on():
    async def task():
        value = await read(A)
        try:
            try:
                if value:
                    raise KeyError
                raise ValueError
            finally:
                await read(B)
        except KeyError:
            await write(C, 1)
        except ValueError:
            await write(C, 2)

    return system(task, set_a)


@case
def a_finally_block_that_traps():
    async def task():
        await lock()
        try:
            await add(A, 1)
        finally:
            await unlock()

    return system(task, task)


@case
def a_value_that_is_only_on_the_stack():
    async def task():
        await write(B, (await read(A)) * 10 + await read(A))

    return system(task, set_a)


@case
def a_closure():
    async def task():
        value = await read(A)

        def kept():
            return value

        await add(C, 1)
        await write(B, kept())

    return system(task, set_a)


@case
def a_comprehension():
    async def task():
        values = [await read(cell) for cell in (A, A, A)]
        await write(B, tuple(values))

    return system(task, set_a)


@case
def an_async_context_manager():
    class Held:
        def __init__(self, cell):
            self.cell = cell

        async def __aenter__(self):
            await add(self.cell, 1)

        async def __aexit__(self, *_):
            await add(self.cell, 10)

    async def task():
        value = await read(A)
        async with Held(B if value else C):
            await read(A)

    return system(task, set_a)


@case
def an_async_context_manager_made_of_a_generator():
    @contextlib.asynccontextmanager
    async def held(cell):
        await add(cell, 1)
        try:
            yield
        finally:
            await add(cell, 10)

    async def task():
        async with held(B if await read(A) else C):
            await read(A)

    return system(task, set_a)


@case
def an_async_generator():
    async def pages():
        number = 0
        while number < 3:
            await read(A)
            yield number
            number += 1

    async def task():
        async for page in pages():
            await add(B, page)

    return system(task, set_a)


@case
def a_list_that_a_callee_changes():
    async def collect(src):
        for place in range(2):
            src[place] = await read(A)

    async def task():
        src = [0, 0]
        await collect(src)
        await write(B, tuple(src))

    return system(task, set_a)


@case
def a_mutable_structure_without_equality():
    class Arguments:
        def __init__(self):
            self.src = [0, 0]
            self.count = 0

    async def setup(arguments):
        for place in range(2):
            arguments.src[place] = await read(A)

    async def task():
        arguments = Arguments()
        await setup(arguments)
        await write(B, tuple(arguments.src))

    return system(task, set_a)


@case
def two_names_of_one_list():
    async def task():
        first = []
        second = first if await read(A) else []
        await read(B)
        first.append(1)
        await write(C, len(second))

    return system(task, set_a)


@case
def truth_and_one():
    async def task():
        value = await read(A)
        await add(C, 1)
        await write(B, "truth" if value is True else "number")

    async def set_one():
        await write(A, 1)

    return system(task, set_one, a=True)


@case
def recursion():
    async def down(depth):
        if depth:
            await add(A, 1)
            await down(depth - 1)

    async def task():
        await down(3)

    return system(task, set_a)


@case
def an_object_with_its_own_await():
    class Work:
        def __init__(self, value):
            self.value = value

        async def run(self):
            await add(C, 1)
            await write(B, self.value)

        def __await__(self):
            return self.run().__await__()

    async def task():
        value = await read(A)
        work = Work(value)
        value = None
        await work

    return system(task, set_a)


@case
def two_locals_read_by_one_instruction():
    async def task():
        first = await read(A)
        second = await read(A)
        both = first * 10 + second
        await write(B, both)

    return system(task, set_a)


@case
def a_chained_comparison():
    async def task():
        first = await read(A)
        await write(B, first <= await read(A) < await read(C))

    async def raise_c():
        await write(A, 2)
        await write(C, 1)

    return system(task, raise_c)


@case
def a_driver_that_raises():
    async def task():
        value = await read(A)
        if value:
            raise OSError

    return system(task, set_a)


@case
def a_name_that_is_bound_on_one_branch_only():
    async def task():
        if await read(A):
            left = 1
        else:
            right = 1  # noqa: F841  (the case)
        await read(B)
        try:
            await write(C, left)
        except UnboundLocalError:
            await write(C, 7)

    return system(task, set_a)


@case
def a_data_choice():
    async def task():
        if await traps.choose("an allocation", 3) == 2:
            await add(A, 1)
        await add(B, await traps.choose("another"))

    return system(task, set_a)
