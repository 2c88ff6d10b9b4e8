"""The API server itself is killed and started again while the operator works. Whoever else uses the cluster loses it too."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.our_cluster

RESTART = Path(__file__).parents[2] / "restart_api_server.sh"
RESTARTS = 10 if os.environ.get("INFERENGINE_TEST_PROFILE") == "soak" else 2
SECONDS_AWAY = (0, 3)
"""besides the few that it takes to start"""


async def test_the_api_server_is_killed_again_and_again(
    home: Any, operators: Any, until: Any, until_leads: Any
) -> None:
    """An operator that could not renew its lease for too long ends, and is started anew, as a Deployment does it."""
    both = [operators(), operators()]
    both[0].start()
    await until_leads(both[0])
    both[1].start()
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    keys = await home.secret("d.acme")
    for number in range(RESTARTS):
        tenants = ["acme", "globex", f"before-{number}"]
        await home.apply("d", *tenants)  # the answer came, so it must not be lost
        command = [str(RESTART), str(SECONDS_AWAY[number % 2])]
        await asyncio.to_thread(subprocess.check_call, command)
        for operator in both:
            if operator._process.poll() is not None:
                operator.start()

        async def one_leads() -> bool:
            return await asyncio.to_thread(lambda: [operator.leads() for operator in both].count(True)) == 1

        await until(one_leads, "one operator leads")
        await home.settled("d")
        assert list(home.entries("d")) == tenants
        await home.apply("d", *tenants, f"after-{number}")
        await home.settled("d")
        assert list(home.entries("d")) == [*tenants, f"after-{number}"]
        assert await one_leads()
    assert await home.secret("d.acme") == keys
    for operator in both:
        assert "Traceback" not in operator.log()
