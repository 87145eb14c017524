"""What can go wrong, as one tree. The command line turns `exit_code` into the process's exit status.

DcpruneError                1  the work failed
├── InputError              2  wrong usage or wrong input: nothing was done
│   ├── OptionError            an option's value is out of range or does not fit the others
│   ├── UnknownName            no encoder, scorer, backend, metric or dataset has this name
│   ├── MissingInput           a file or folder that should be read is not there
│   ├── OutputExists           a file or folder that should be written is there already
│   ├── ArtifactError          a file is not a valid artifact
│   ├── DatasetError           the images cannot be read as a dataset
│   │   └── DatasetMismatch    the artifact was made from another dataset
│   ├── ProtocolMismatch       values of a metric were not measured alike
│   ├── WeightsError           model weights are missing or do not fit
│   └── PluginError            a plugin that is needed failed to load
├── TrainingDiverged        1  the loss is no longer finite, or explodes
├── StorageError            1  a file of a run cannot be written: disk full, quota, permissions
├── OutOfMemory             1  a device does not hold what it should compute at a time
├── OutOfTime             130  --max-time is over; the state is saved
└── VerificationError       3  a hash or a link of the chain differs
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 60  # names that a message lists; of more, only the closest


class DcpruneError(Exception):
    """Base of every error that dcprune raises on purpose; the message names the value and the fix."""

    exit_code = 1


class InputError(DcpruneError):
    """Wrong usage or wrong input; raised before anything is written."""

    exit_code = 2


class OptionError(InputError):
    """An option's value is out of range or contradicts another option."""


class UnknownName(InputError):
    """A name that no plugin registered.

    Args:
        kind: what was looked up, as a word for the message (`"encoder"`, `"setting of scorer 'moderate'"`).
        name: the name as it was given.
        known: every name that would have worked.
        hint: one more sentence for the message.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=5)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        choices = f" Known: {', '.join(names)}." if names else " There are none."
        if len(names) > _LISTED:
            choices = f" Closest of {len(names)}: {', '.join(close)}." if close else f" {len(names)} are known."
        super().__init__(f"Unknown {kind} {name!r}.{guess}{choices}{' ' + hint if hint else ''}")


class MissingInput(InputError):
    """A file or folder to read is not there."""


class OutputExists(InputError):
    """A file or folder to write exists, and neither `overwrite` nor `resume` was asked for."""


class ArtifactError(InputError):
    """A file is not the artifact it should be: wrong kind, newer version, truncated, corrupt or inconsistent."""


class DatasetError(InputError):
    """Images cannot be read as a dataset: folder empty, file unreadable, split unknown, download impossible."""


class DatasetMissing(DatasetError):
    """A dataset that is known by name is not on this machine, and was not to be fetched or cannot be."""


class DatasetMismatch(DatasetError):
    """The dataset at hand is not the one that an artifact was made from."""


class ProtocolMismatch(InputError):
    """Values of a metric were not measured alike, so they cannot be compared."""


class WeightsError(InputError):
    """Model weights are missing, cannot be downloaded, or do not fit the network."""


class PluginError(InputError):
    """A plugin package, or one item of it, failed to load and is needed."""


class TrainingDiverged(DcpruneError):
    """A training loss, or a weight, is not finite any more, or the loss explodes."""


class StorageError(DcpruneError):
    """A file of a run cannot be written: the disk is full, a quota is reached, or permissions are missing."""


class OutOfMemory(DcpruneError):
    """A device does not hold what it should compute at a time."""


class OutOfTime(DcpruneError):
    """The time that a run was given is over; its state is saved, and it can be resumed."""

    exit_code = 130


class VerificationError(DcpruneError):
    """A stored hash or a link between artifacts does not hold."""

    exit_code = 3
