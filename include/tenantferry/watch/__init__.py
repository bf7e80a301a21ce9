"""
Look at a running fleet: what is wrong, or about to be, and what to do about it.

Each kind of check looks at everything it can reach, in bounded time, and changes nothing; what it
cannot reach is told, and stops no other check. Only `tenantferry.watch.attempts` acts: an attempt
of a cutover or of a rollback that its machine left behind keeps clients waiting.
"""
