"""What a test of a cutover that does not come through looks at."""

from __future__ import annotations

from move_stage import Stage, rows

# Runs a cutover whose guard dies before it, as when their machine is lost.
LOST_SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.cutover import cutover
move, fatal = pickle.load(sys.stdin.buffer)
def lose(step):
    if step == fatal:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
cutover(move, on_step=lose)
"""


def assert_untouched(stage: Stage, acl: list[str]) -> None:
    assert stage.phase() == "validated"
    assert stage.acl() == acl
    assert stage.ask("SELECT current_user::text") == [("app_owner",)]
    attempts = rows(
        stage.target,
        "SELECT count(*) FROM tenantferry.write_pauses WHERE undone_at IS NULL",
    )
    assert attempts == [(0,)]
