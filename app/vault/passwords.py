"""Passwords as they are kept: argon2id in PHC's text form, which carries its own parameters.

19 MiB, two passes, one lane: OWASP's Password Storage Cheat Sheet names it as the least that is enough.
"""

import os
import re

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

MEMORY_KIB, PASSES, LANES = 19_456, 2, 1
SALT_BYTES, HASH_BYTES = 16, 32

#: Verified where there is nobody, so that both ways take as long. Its password was random and is known to no one.
NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$GAOybLC7i6GNj/cVQ0+NMA$eSEIPs+L7efjYA59f3FwrmUzkqNRu///PPxklmGdjXA"

_PARAMETERS = re.compile(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$")


def derive(password: str) -> str:
    """The hash to keep. Takes some 40 ms of a core and 19 MiB."""
    kdf = Argon2id(
        salt=os.urandom(SALT_BYTES), length=HASH_BYTES, iterations=PASSES, lanes=LANES, memory_cost=MEMORY_KIB
    )
    return kdf.derive_phc_encoded(password.encode(errors="surrogatepass"))


def fits(password: str, kept: str) -> bool:
    """The password is the one that was kept. As long as `derive`; a hash that cannot be read fits nothing."""
    try:
        Argon2id.verify_phc_encoded(password.encode(errors="surrogatepass"), kept)
    except (InvalidKey, ValueError):
        return False
    return True


def is_outdated(kept: str) -> bool:
    """It was derived with other parameters than today's."""
    found = _PARAMETERS.match(kept)
    return found is None or tuple(map(int, found.groups())) != (MEMORY_KIB, PASSES, LANES)
