"""Environments are made once a session: the simulators take longer to load than to step."""

import functools

import pytest

import envs


@pytest.fixture(scope="session")
def environment():
    """``environment(task, **options)``: one shared environment per task and options."""
    made = []

    @functools.cache
    def shared(task, **options):
        made.append(envs.make(task, **options))
        return made[-1]

    yield shared
    for one in made:
        one.close()
