"""The rule by which a job is started again, as a table."""

import pytest

from anygpt_jax.launching.policy import Verdict, judge, saved

DONE, STOPPED, USER_ERROR, RESTART, GIVEN_UP = Verdict


@pytest.mark.parametrize(
    ("codes", "asked", "verdict"),
    [
        ([0, 0], False, DONE),
        ([0, 0], True, DONE),  # it came to its end before it heard that it should stop
        ([-9, None], False, RESTART),
        ([None, -6], False, RESTART),
        ([137, 137], False, RESTART),  # as a container tells of SIGKILL
        ([1, None], False, RESTART),  # an error that nobody foresaw
        ([0, -9], False, RESTART),  # the last save may have been this one's
        ([143, 143], False, RESTART),  # preempted
        ([143, 143], True, STOPPED),
        ([130, 130], True, STOPPED),
        ([0, 143], True, STOPPED),
        ([-15, None], True, STOPPED),  # it was not far enough to save
        ([None, None], True, STOPPED),
        ([None, None], False, RESTART),  # all hosts are gone
        ([], False, RESTART),
        ([2, 2], False, USER_ERROR),
        ([None, 2], False, USER_ERROR),
        ([1, 2], False, USER_ERROR),
        ([2, 2], True, USER_ERROR),
    ],
)
def test_what_becomes_of_a_job(codes, asked, verdict):
    assert judge(codes, 3, 4, asked) is verdict
    assert judge(codes, 4, 4, asked) is (GIVEN_UP if verdict is RESTART else verdict)


def test_it_is_restarted_as_often_as_it_may_be():
    for allowed in (0, 1, 5):
        restarts = 0
        while judge([-9], restarts, allowed) is RESTART:
            restarts += 1
        assert restarts == allowed


@pytest.mark.parametrize(
    ("codes", "nothing_lost"),
    [([143, 143], True), ([130, 0], True), ([143, -9], False), ([143, None], False), ([2], False), ([], False)],
)
def test_whether_all_had_saved(codes, nothing_lost):
    assert saved(codes) is nothing_lost
