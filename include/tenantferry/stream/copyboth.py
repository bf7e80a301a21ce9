"""
The copy-both mode of libpq, message by message.

psycopg2 can start it but not be trusted to confirm in it: once it was told a flushed position it
moves that position on by itself with a keepalive, when the last message read *starts* below it.
The first message of a long transaction does, also while a shorter one read before it is not
applied yet; the slot would be confirmed beyond that one. So psycopg2 only opens the session here,
and the messages are read and written by libpq, the one psycopg2 itself has loaded.

Source: PostgreSQL documentation, "Functions Associated with the COPY Command";
``pq_read_replication_message`` of psycopg2 2.9.
"""

from __future__ import annotations

import ctypes

from psycopg2 import _psycopg
from psycopg2.extensions import connection

from tenantferry.errors import TransientError

_SQLSTATE = ord("C")
_UNDEFINED_OBJECT = b"42704"

# Searching the extension finds what it is linked against: the libpq of its connections. These
# calls never wait, so they keep the interpreter lock, which is dearer to get back than they are.
_LIBPQ = ctypes.PyDLL(_psycopg.__file__)
_get_copy_data = _LIBPQ.PQgetCopyData
_get_copy_data.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int)
_get_copy_data.restype = ctypes.c_int
_consume_input = _LIBPQ.PQconsumeInput
_consume_input.argtypes = (ctypes.c_void_p,)
_consume_input.restype = ctypes.c_int
_put_copy_data = _LIBPQ.PQputCopyData
_put_copy_data.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
_put_copy_data.restype = ctypes.c_int
_flush = _LIBPQ.PQflush
_flush.argtypes = (ctypes.c_void_p,)
_flush.restype = ctypes.c_int
_error_message = _LIBPQ.PQerrorMessage
_error_message.argtypes = (ctypes.c_void_p,)
_error_message.restype = ctypes.c_char_p
_free = _LIBPQ.PQfreemem
_free.argtypes = (ctypes.c_void_p,)
_free.restype = None
_get_result = _LIBPQ.PQgetResult
_get_result.argtypes = (ctypes.c_void_p,)
_get_result.restype = ctypes.c_void_p
_result_error = _LIBPQ.PQresultErrorMessage
_result_error.argtypes = (ctypes.c_void_p,)
_result_error.restype = ctypes.c_char_p
_result_field = _LIBPQ.PQresultErrorField
_result_field.argtypes = (ctypes.c_void_p, ctypes.c_int)
_result_field.restype = ctypes.c_char_p


class NoPublicationError(TransientError):
    """There was no publication when something was written that the slot has not sent yet."""


class CopyBoth:
    """
    A session in copy-both mode.

    :param session: stays open as long as this is used, and is used for nothing else.
    """

    def __init__(self, session: connection) -> None:
        self._session = session
        self._pgconn = session.pgconn_ptr
        self._buffer = ctypes.c_void_p()
        self._buffer_ref = ctypes.byref(self._buffer)

    def fileno(self) -> int:
        """Return the descriptor to wait on; after that call `consume`."""
        descriptor: int = self._session.fileno()
        return descriptor

    def consume(self) -> None:
        """
        Take what the server has sent off the socket.

        :raises TransientError: if the session is lost.
        """
        if not _consume_input(self._pgconn):
            raise self._lost(_error_message(self._pgconn))

    def get(self) -> bytes | None:
        """
        Return the next message that has arrived, or ``None``.

        :raises TransientError: if the server ended the stream.
        """
        size = _get_copy_data(self._pgconn, self._buffer_ref, 1)
        if size > 0:
            data = ctypes.string_at(self._buffer, size)
            _free(self._buffer)
            return data
        if size == 0:
            return None
        if size == -1:
            result = _get_result(self._pgconn)
            if result and _result_field(result, _SQLSTATE) == _UNDEFINED_OBJECT:
                raise self._lost(_result_error(result), NoPublicationError)
            raise self._lost(_result_error(result) if result else None)
        raise self._lost(_error_message(self._pgconn))

    def put(self, message: bytes) -> None:
        """
        Send a message.

        :raises TransientError: if the session is lost.
        """
        if _put_copy_data(self._pgconn, message, len(message)) != 1 or _flush(self._pgconn) < 0:
            raise self._lost(_error_message(self._pgconn))

    def _lost(
        self, message: bytes | None, error: type[TransientError] = TransientError
    ) -> TransientError:
        return error(
            "the server ended the stream",
            detail=" ".join((message or b"").decode("utf-8", "replace").split()),
            hint="Look at the log of that server if a retry does not help.",
        )
