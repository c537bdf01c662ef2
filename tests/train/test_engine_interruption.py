import os
import signal
import threading

import pytest

from art.train.interruption import Interrupted, Interruption, ending_on_sigterm


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_former_handler_comes_back(number):
    former = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.requested()
        signal.raise_signal(number)
        assert interruption.requested()
        assert interruption.signal_number == number
    assert signal.getsignal(number) is former


def test_a_second_signal_acts_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_worker_leaves_ctrl_c_to_its_parent_but_can_be_terminated(number, ends):
    with Interruption() as interruption:
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            os._exit(5 if not interruption.requested() else 6)
        _, status = os.waitpid(child, 0)
        assert not interruption.requested()
    assert (os.WIFSIGNALED(status) and os.WTERMSIG(status) == number) if ends else os.WEXITSTATUS(status) == 5


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def body():
        with Interruption() as interruption:
            seen.append(interruption.requested())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_sigterm_may_end_work_as_an_error_that_cleans_up():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="what is finished stays") as caught, ending_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is former


def test_outside_the_main_thread_sigterm_stays_as_it_is():
    former, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with ending_on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [former]
