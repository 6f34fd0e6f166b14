"""Every scenario with every official client, blocking and asyncio, against a real server with real containers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.clients import GENERATIONS, Answer, Driver, Environments
from tests.interop.conftest import Place
from tests.interop.report import Outcome
from tests.interop.rows import ROWS

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

LONG = ("12", "21")
"""Over a minute each; all clients at once, in processes of their own."""
CASES = [
    (generation, form, row)
    for generation in GENERATIONS
    for form in ("sync", "async")
    for row, facts in ROWS.items()
    if row not in LONG and (facts.generations is None or generation in facts.generations)
]


@pytest.mark.parametrize(("generation", "form", "row"), CASES, ids=["-".join(case) for case in CASES])
def test_scenario(
    generation: str, form: str, row: str, place: Place, drivers: dict[str, Driver], outcomes: list[Outcome]
) -> None:
    driver = drivers[generation]
    if row == "27":
        began = place.run(driver, "27a", form)
        assert began.ok, began.trace
        # Another generation's process, where there is one: the session is the server's, not the client's.
        answer = place.run(driver, "27b", form, left=began.notes)
    else:
        answer = place.run(driver, row, form, timeout_s=ROWS[row].timeout_s)
    outcomes.append(Outcome(row, generation, form, answer.ok))
    assert answer.ok, f"{answer.error}\n{answer.trace}"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("row", LONG)
def test_long_scenario(row: str, place: Place, environments: Environments, outcomes: list[Outcome]) -> None:
    cases = [(generation, form) for generation in GENERATIONS for form in ("sync", "async")]

    def run(case: tuple[str, str]) -> Answer:
        generation, form = case
        with environments.driver(generation, place.endpoint, place.key) as driver:
            return place.run(driver, row, form, timeout_s=ROWS[row].timeout_s)

    for generation in GENERATIONS:
        environments.python(generation)
    with ThreadPoolExecutor(len(cases)) as pool:
        answers = dict(zip(cases, pool.map(run, cases), strict=True))
    outcomes.extend(Outcome(row, *case, answer.ok) for case, answer in answers.items())
    assert all(answer.ok for answer in answers.values()), [answer.trace for answer in answers.values()]
