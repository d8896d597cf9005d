"""What callers lived through, as the fault bench counts it."""

from bench.witness import Account, is_same


def test_full_again_is_when_answers_come_as_fast_as_before():
    account = Account(answered=[at / 10 for at in range(20)] + [3.5 + at / 10 for at in range(20)])
    assert account.seconds_until_full(2.0) == 1.5
    assert Account(answered=account.answered[:20]).seconds_until_full(2.0) is None


def test_health_is_told_in_order_with_the_seconds_of_all_but_200():
    pings = [(0.0, 200), (1.0, None), (2.5, 503), (3.0, 503), (3.5, 200)]
    assert Account(pings=pings).describe_health() == "200, no answer for 1.5 s, 503 for 1.0 s, 200"
    assert Account().describe_health() == "never asked"


def test_an_answer_is_right_with_the_same_best_label_and_nearly_its_probability():
    assert is_same([("a", 0.5)], [("a", 0.5001)])
    assert not is_same([("a", 0.5)], [("b", 0.5)])
    assert not is_same([("a", 0.5)], [("a", 0.6)])
