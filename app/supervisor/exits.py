"""Why a gateway ended, in a word for programs and a sentence for its owner; a pure reading of what is known."""

from app.domain.states import BotStatus, Reason
from app.gateway import home
from app.gateway.process import Exit

#: OpenClaw's exit status for a configuration it refuses (EX_CONFIG); the old version ends with 1.
EX_CONFIG = 78
#: Lines of the gateway's last words that go into a sentence.
TAIL_LINES = 5

_WORDS = {
    Reason.CRASHED: "the gateway ended unasked",
    Reason.EXITED: "the gateway ended before it was ready",
    Reason.LOST: "the gateway was gone when ClawNet came back, and left no word of how it ended",
    Reason.HOST_RESTART: "the machine was restarted",
    Reason.UNHEALTHY: "the gateway did not answer several probes in a row and was ended",
    Reason.CONFIG_INVALID: "OpenClaw refused the configuration",
}


def classify(status: BotStatus, exit_: Exit, known: Reason | None) -> tuple[Reason, str]:
    """The reason and the sentence of an exit that nobody wished for.

    Args:
        status: What the bot was when it ended.
        known: The reason, where we ended it ourselves.
    """
    reason = known or _from_machine(exit_)
    if reason is None and status is BotStatus.STARTING:
        refused = home.refusal_in(list(exit_.tail))
        if refused is not None:
            return refused
        reason = Reason.CONFIG_INVALID if exit_.code == EX_CONFIG else Reason.EXITED
    reason = reason or Reason.CRASHED
    return reason, _WORDS[reason] + _how(exit_) + _last_words(exit_, reason)


def _from_machine(exit_: Exit) -> Reason | None:
    if exit_.rebooted:
        return Reason.HOST_RESTART
    return Reason.LOST if exit_.lost else None


def _how(exit_: Exit) -> str:
    if exit_.signal is not None:
        return f" (signal {exit_.signal})"
    return "" if exit_.code is None else f" (exit code {exit_.code})"


def _last_words(exit_: Exit, reason: Reason) -> str:
    """Of a gateway that was never ready; later ones print what the agent says, which is nobody else's business."""
    if reason not in (Reason.EXITED, Reason.CONFIG_INVALID):
        return ""
    lines = [line.strip() for line in exit_.tail[-TAIL_LINES:] if line.strip()]
    return f"; its last words: {' | '.join(lines)}" if lines else ""
