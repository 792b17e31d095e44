"""A program that speaks one text with espeak-ng's library; `engines.Espeak` runs it by its path.

    python espeak_process.py LIBRARY VOICE WORDS_PER_MINUTE TEXT

It writes a line of JSON, ``[sample rate, [[place in the text, milliseconds] of each word]]``, then
16-bit samples. Each utterance has its own process, because the library's output depends on what it
said before. The program imports only the standard library, so that it starts quickly.
"""

import ctypes
import json
import sys
from typing import Any

# Constants of speak_lib.h.
_RETRIEVAL = 1
_CHARACTERS = 1
_RATE = 1
_UTF8 = 1
_WORD = 1


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


def main(path: str, voice: str, words_per_minute: int, text: str) -> None:
    """Write the spoken text to standard output."""
    library = ctypes.CDLL(path)
    content = text.encode()
    pieces = list[bytes]()
    starts = list[tuple[int, int]]()

    def take(samples: int | None, count: int, events: Any) -> int:
        if samples and count:
            pieces.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while (event := events[index]).type:
            if event.type == _WORD:
                starts.append((event.text_position - 1, event.audio_position))
            index += 1
        return 0

    form = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))
    callback = form(take)  # it must live as long as the library may call it
    rate = library.espeak_Initialize(_RETRIEVAL, 0, None, 0)
    if rate <= 0 or library.espeak_SetVoiceByName(voice.encode()):
        sys.exit(f"no voice {voice!r}: see `espeak-ng --voices`")
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    library.espeak_Synth(content, len(content) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    sys.stdout.buffer.write(json.dumps([rate, starts]).encode() + b"\n" + b"".join(pieces))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
