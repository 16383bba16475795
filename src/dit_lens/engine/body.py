"""The body of a trace, as nnsight runs it beside the model: every value that it asks for belongs to its own call.

nnsight matches a request with a visit of a module by counting visits, whatever call they are in. `Body` puts calls on
top of that, at the two ends where all requests pass, those of raw envoys too:

- where the body asks (`wanted`): only the call that runs can be asked, and only for the next visit in it;
- where a call ends (`end_call`): a request that still waits was for a value that the call did not make any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent
from nnsight.intervention.interleaver import Event, Mediator, Pending

from dit_lens.engine.copies import BodyCopies, StatePart
from dit_lens.engine.handover import Handover
from dit_lens.errors import CaptureError

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.stages import Call

LOCATION = "dit_lens.call"
"""Where the body waits for the next call of a DiT, in nnsight's terms."""

RESULT = "result"
"""Where the body waits for the run, in nnsight's terms: `tr.result`."""

_ORDER = "Ask for values in the order in which the model makes them, lower layers first."


class CopyRequest(Pending):
    """A request for a value that the body gets a copy of, or for the copy to take the value's place."""


class Body(Mediator):
    """Runs the body of a trace in step with the model.

    Args:
        dits: Paths of the DiTs, in nnsight's terms.

    Attributes:
        running: The call that the model is in, or was in last; None before the first, and when the run has ended.
        call: The call that the body is in; None outside of a loop over `tr.calls`.
        ended: Whether the run has ended.
    """

    def __init__(
        self, code: Any, names: dict[str, Any], local_names: dict[str, Any], dits: Iterable[str]
    ) -> None:
        super().__init__(code, names, local_names)
        self.running: Call | None = None
        self.call: Call | None = None
        self.ended = False
        self._dits = tuple(dits)
        self._handover = Handover()
        self._copies: BodyCopies | None = None  # what it holds of the place where the model waits
        self._compared: set[str] = set()  # locations of which it has held something
        self._served = 0  # visits of LOCATION that the body has had
        self._before: dict[str, int] = {}  # nnsight's counts of visits, when the running call began
        self._once: dict[
            str, str
        ] = {}  # locations that a call visits once, and that the body has named in words

    # ---- where the body asks

    def next_call(self) -> Call | None:
        """Wait for the next call of a DiT; None when the run has ended."""
        if self.ended:
            return None
        call: Call | None = Mediator.value(LOCATION)
        return call

    def read(self, location: str, part: StatePart) -> Tensor:
        """Return a copy of a value at a location that a call visits once; written to, it takes the value's place."""
        tensor = self._copies_at(location, part).read(part)
        self._handover.lend(tensor, f"{part.what} at {self.running}")
        return tensor

    def write(self, location: str, part: StatePart, value: Tensor) -> None:
        """Let another tensor take the place of a value at a location that a call visits once."""
        self._copies_at(location, part).set(part, value)
        self._handover.lend(value, f"{part.what} at {self.running}")

    def _copies_at(self, location: str, part: StatePart) -> BodyCopies:
        self._ask_once(location, part.what)
        visit = location, self.wanted(location)
        if self._copies is None or self._copies.visit != visit:
            self.flush()
            self._copies = BodyCopies(visit, getcurrent().parent.switch(CopyRequest(Event.VALUE, *visit)))
        return self._copies

    def flush(self) -> None:
        """Put what the body has written into the model; nnsight asks for it before every request, and when the body ends."""
        super().flush()
        copies, self._copies = self._copies, None
        if copies is None:
            return
        new = copies.outcome(first=copies.visit[0] not in self._compared)
        self._compared.add(copies.visit[0])
        if new is not copies.carried:
            getcurrent().parent.switch(CopyRequest(Event.SWAP, *copies.visit, new))

    def wanted(self, location: str) -> int:
        """Return which visit of a location a request made now is for; nnsight asks before every request.

        Raises:
            CaptureError: No visit that is still to come belongs to the call that the body is in.
        """
        visits = self.occurrence(location)
        if location == LOCATION:  # while a call is served, its own visit is not counted yet
            visits = max(visits, self._served)
            self._served = visits + 1
            return visits
        if self.ended and location != RESULT:
            raise CaptureError(
                f"{self._named(location)}: the run has ended. Ask for it in a call, in a loop over tr.calls()."
            )
        if self.call is None and any(location.startswith(f"{path}.") for path in self._dits):
            raise CaptureError(
                f"{self._named(location)} is asked for outside of a call, so its step and branch are unknown: ask for it in a "
                "loop, for call in tr.calls(step=..., branch=...)."
            )
        self.check_current(self.call, self._named(location))
        return visits

    def check_current(self, call: Call | None, what: str) -> None:
        """Refuse a value of another call than the one that runs.

        Raises:
            CaptureError: The call is over.
        """
        if call is not None and call is not self.running:
            now = "the run has ended" if self.ended else f"it is at {self.running}"
            raise CaptureError(f"{what} at {call}: the model is past it ({now}). {_ORDER}")

    def _ask_once(self, location: str, what: str) -> None:
        self._once[location] = what
        if self._visits(location):
            raise CaptureError(f"{what} at {self.call}: the model is past it in this call. {_ORDER}")

    def _named(self, location: str) -> str:
        """Return a location in words; nnsight's path, without the name of the root, where the body has used that."""
        return self._once.get(location, location.removeprefix("model."))

    def _visits(self, location: str) -> int:
        """Return how often the running call has visited a location; a visit that is being served does not count."""
        return self.interleaver.counts.get(location, 0) - self._before.get(location, 0)

    # ---- where the model waits while the body runs

    def switch(self, *args: Any) -> Any:
        """Let the body run until it asks for something; nnsight calls it with what the body has waited for.

        Raises:
            CaptureError: The body has ended, and leaves the model another one than it was handed; where it has not
                ended, the error is raised in it.
        """
        pending: Pending | None = self.pending
        if pending is not None and pending.provider is not None:
            sets = pending.event is not Event.VALUE
            carried = pending.value if sets else args
            if isinstance(pending, CopyRequest):
                carried = ()  # nothing of the model's own, nor for the body to hold
            what = self._named(pending.provider) + (f" at {self.running}" if self.running else "")
            self._handover.serve((pending.provider, pending.iteration), carried, what, instead=sets)
        try:
            self._handover.begin()
            with self._aside():
                pending = super().switch(*args)
        finally:
            error = self._handover.end()
        if error is not None:
            self._raise(error)
            return self.pending
        return pending

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let the body have the model's modules to itself: those that it calls are no visits, and run bare."""
        busy, self.interleaver.busy = self.interleaver.busy, False
        try:
            with nullcontext() if self.running is None else self.running.aside():
                yield
        finally:
            self.interleaver.busy = busy

    # ---- where a call ends

    def begin_call(self, call: Call | None) -> None:
        """Take the call that begins now; None when the run has ended."""
        self.end_call(ended=call is None)
        self.running, self.ended = call, call is None
        self._before = dict(self.interleaver.counts)

    def end_call(self, ended: bool = False) -> None:
        """Refuse what the body still waits for, now that its call is over.

        Raises:
            CaptureError: It waits for a value that did not come; or a value came twice in the call.
        """
        over, self.running, self.ended = self.running, None, ended
        self._handover.forget()
        while self.alive and self._waits_in_vain(ended):
            self._raise(self._missed(over))
        twice = next(
            (location for location in sorted(self._once) if over and self._visits(location) > 1), None
        )
        if self.alive and twice is not None:
            self._raise(
                CaptureError(
                    f"{self._named(twice)} at {over} ran {self._visits(twice)} times in this call, so there is no one value: ask "
                    "for each visit through nnsight, with .envoy."
                )
            )
        self._once = {}

    def _waits_in_vain(self, ended: bool) -> bool:
        pending = self.pending
        if pending is None or pending.provider in (LOCATION, RESULT):
            return False
        return ended or self.call is not None

    def _missed(self, over: Call | None) -> CaptureError:
        """Return the error that says what did not come, and what to ask for instead."""
        pending = self.pending
        if pending is None or pending.provider is None:
            return CaptureError("The body waits at a barrier that nothing releases: leave it out.")
        location = pending.provider
        what = f"{self._named(location)} at {over}" if over else self._named(location)
        does = {Event.SWAP: "could not be set", Event.SKIP: "could not be skipped"}.get(
            pending.event, "did not come"
        )
        if over is None:
            return CaptureError(
                f"{what} {does}: the run ended without it. Ask for it in a call, in a loop over tr.calls()."
            )
        if self._visits(location):
            return CaptureError(f"{what} {does}: the model is past it in this call. {_ORDER}")
        return CaptureError(
            f"{what} {does}: this module did not run in this call. The pipeline may call its parts, or skip it: "
            "ask for call.block(n).output, or for a part that runs."
        )

    def _raise(self, error: BaseException) -> None:
        """Raise an error in the body, at the line that waits; what the body does then is what it waits for next."""
        worker: Any = self.worker
        worker.parent = getcurrent()
        try:
            with self._aside():
                self.pending = worker.throw(error)
        except BaseException as raised:
            self.pending = None
            if not hasattr(raised, "__intervention_tb__"):
                raised.__intervention_tb__ = raised.__traceback__  # type: ignore[attr-defined]  # nnsight reads it
            raise
        self.interleaver.reindex()

    # ---- counting, which calls replace

    @property
    def iteration(self) -> int:
        """Which visit nnsight's own loops have pinned: none, because calls say which visit is meant."""
        return 0

    @iteration.setter
    def iteration(self, visit: int | None) -> None:
        if visit:
            raise CaptureError(
                "nnsight's iter counts visits of a module, which says nothing of steps and branches: loop over "
                "tr.calls(step=..., branch=...)."
            )


def current_body(what: str) -> Body:
    """Return the body that runs now.

    Raises:
        CaptureError: None does, or a block of another kind (`with loss.backward()`) runs inside of it.
    """
    reference: Callable[[], Any] | None = getattr(getcurrent(), "mediator", None)
    body = None if reference is None else reference()
    if not isinstance(body, Body):
        raise CaptureError(
            f"{what}: ask for it in the body of the `with` block, directly: the model runs beside it alone."
        )
    return body


__all__ = ["LOCATION", "Body", "current_body"]
