/*
 * The backfill in rounds, and the stream after it: DESIGN's one invariant.
 *
 *   For every tenant there is one source LSN P such that its rows in the target, in the chunks
 *   copied so far, are exactly the source's rows as committed at P. P only moves forward, and is
 *   stored in the same target transaction as the rows it describes.
 *
 * Small on purpose: KEYS rows, each a chunk of its own, and a history of TRANSACTIONS commits. A
 * commit changes one row, or moves a value from one row to another one: a delete in one chunk and
 * an insert in another. The LSN of a commit is its number; a snapshot at S holds the commits before
 * S. The migration is killed at any moment, and the target may lose what it has committed but not
 * flushed; both at most CRASHES times. What it was copying may go on without it: a session that is
 * not ended yet commits a chunk when it likes.
 *
 * Mutations, each of which must be refused:
 *   CONFIRM_BEFORE_FLUSH    the slot is confirmed up to what is committed and not yet durable
 *   SKIP_CATCH_UP           a round copies under a new snapshot before the copied chunks are there
 *   APPLY_EVERYWHERE        a change of a chunk that is not copied yet is applied as if it were
 *   INCLUSIVE_SNAPSHOT      commits up to and including S are taken for part of the snapshot at S
 *   POSITION_APART          the rows are committed before the position
 *   LEFTOVER_MAY_COMMIT     the position moves, and a chunk of an earlier round is committed yet
 *   GUESS_VALUE             a row enters a copied chunk, and what is not sent of it is made up
 *   KEEP_ROWS               a chunk is made pending again, and its rows stay
 */
#ifndef KEYS
#define KEYS 2
#endif
#ifndef TRANSACTIONS
#define TRANSACTIONS 3
#endif
#ifndef CRASHES
#define CRASHES 2
#endif

/* One slot of the history per commit: the source's rows before it. Zero is "no row". */
typedef Rows { byte row[KEYS] };
Rows source[TRANSACTIONS + 1];
byte commits = 0;       /* so far; also the LSN of the next one */

typedef Target {
    byte row[KEYS];
    bool copied[KEYS];
    byte position;      /* P: every commit before it is applied */
};
Target committed;       /* what a session of the target sees */
Target durable;         /* what is left of it after the target was killed */

/* A chunk that a dead migration has read: its number and one more, 0 for none, and the snapshot. */
byte leftover = 0;
byte leftover_snapshot;

byte confirmed = 0;     /* the slot: the source has forgotten every commit before it */
byte crashes = 0;
bool has_ended = false; /* the source writes no more */
bool done = false;      /* and everything is applied */

byte k;                 /* for the inlines below; never meaningful between two steps */

inline copy_state(from, to) {
    k = 0;
    do
    :: k < KEYS -> to.row[k] = from.row[k]; to.copied[k] = from.copied[k]; k++
    :: else -> break
    od;
    to.position = from.position;
    k = 0
}

/* The invariant, looked at after every transaction of the target. */
inline check() {
    k = 0;
    do
    :: k < KEYS ->
        assert(!committed.copied[k]
            || committed.row[k] == source[committed.position].row[k]);
        k++
    :: else -> break
    od;
    k = 0;
    /* What is not durable can be read again. */
    assert(confirmed <= durable.position)
}

/* Row k came from another row that is not copied, so that its value need not be sent. */
#define ENTERS(n, k) (source[n + 1].row[k] != 0 \
    && source[n + 1].row[k] == source[n].row[(k + KEYS - 1) % KEYS] \
    && !committed.copied[(k + KEYS - 1) % KEYS])

inline reopen(k) {
    committed.copied[k] = false;
#ifndef KEEP_ROWS
    committed.row[k] = 0
#endif
}

/* Make commit number n part of the target. */
inline apply(n) {
    k = 0;
    do
    :: k < KEYS ->
        if
        :: source[n].row[k] == source[n + 1].row[k]
        :: else ->
#ifdef APPLY_EVERYWHERE
            committed.row[k] = source[n + 1].row[k]
#else
            if
            :: committed.copied[k] -> committed.row[k] = source[n + 1].row[k]
#ifdef GUESS_VALUE
            :: committed.copied[k] && ENTERS(n, k) -> committed.row[k] = 255
#else
            :: committed.copied[k] && ENTERS(n, k) -> reopen(k)
#endif
            :: !committed.copied[k]     /* its chunk will be copied at a later commit */
            fi
#endif
        fi;
        k++
    :: else -> break
    od;
    k = 0;
#ifndef POSITION_APART
    committed.position = n + 1
#endif
}

/* Make what a snapshot shows of row c part of the target. */
inline copy_chunk(c, at) {
    assert(committed.row[c] == 0);      /* COPY would meet the row */
    committed.row[c] = source[at].row[c];
    committed.copied[c] = true;
    /* The first round begins at its snapshot. */
    if
    :: committed.position < at -> committed.position = at
    :: else
    fi;
    check()
}

/* The migration is killed, alone or with the target, which then loses what was not flushed. */
inline maybe_crash() {
    if
    :: crashes < CRASHES -> crashes++; goto round
    :: crashes < CRASHES ->
        d_step {
            crashes++;
            leftover = 0;
            leftover_snapshot = 0;
            copy_state(durable, committed)
        };
        goto round
    :: true
    fi
}

/* The applications: each commit is one of these. */
proctype Source() {
    byte a, value = 1;
    do
    :: commits < TRANSACTIONS ->
        atomic {
            select(a : 0 .. KEYS - 1);
            k = 0;
            do
            :: k < KEYS -> source[commits + 1].row[k] = source[commits].row[k]; k++
            :: else -> break
            od;
            k = 0;
            if
            :: source[commits + 1].row[a] = value; value++      /* insert or update */
            :: source[commits].row[a] != 0 -> source[commits + 1].row[a] = 0    /* delete */
            :: source[commits].row[a] != 0 ->                   /* the row's key changes */
                source[commits + 1].row[(a + 1) % KEYS] = source[commits].row[a];
                source[commits + 1].row[a] = 0
            fi;
            commits++;
            a = 0
        }
    :: has_ended = true -> break
    od
}

/* The target's disk, and its sudden end together with the migration's session. */
proctype Disk() {
    do
    :: done -> break
    :: else -> d_step { copy_state(committed, durable) }
    od
}

/* What is left of a migration that was killed while it copied. */
proctype Leftover() {
    byte c;
    do
    :: done -> break
    :: d_step {
        leftover != 0 ->
            c = leftover - 1;
            leftover = 0;
            if
            :: !committed.copied[c] -> copy_chunk(c, leftover_snapshot)
            :: else
            fi;
            c = 0;
            leftover_snapshot = 0
    }
    od
}

/* The migration: after a crash it knows nothing but what the target and the slot tell. */
proctype Migration() {
    byte snapshot, c;
    bool pending;
round:
    pending = false;
    c = 0;
    do
    :: c < KEYS -> pending = pending || !committed.copied[c]; c++
    :: else -> break
    od;
    c = 0;
    if
    :: !pending -> goto stream
    :: else
    fi;
    snapshot = commits;
#ifndef LEFTOVER_MAY_COMMIT
    /* No chunk belongs to a round while the position moves. */
    d_step { leftover = 0; leftover_snapshot = 0 };
#endif
    /* Catch up: the copied chunks come to exactly the snapshot. */
#ifndef SKIP_CATCH_UP
    do
#ifdef INCLUSIVE_SNAPSHOT
    :: committed.position <= snapshot && committed.position < commits ->
#else
    :: committed.position < snapshot ->
#endif
        atomic { assert(committed.position >= confirmed); apply(committed.position) };
#ifdef POSITION_APART
        maybe_crash();
        committed.position = committed.position + 1;
#endif
        d_step { check() };
        maybe_crash()
    :: else -> break
    od;
#endif
    /* Copy, in any order, at most as many as the round's budget allows. */
    do
    :: true ->
        select(c : 0 .. KEYS - 1);
        if
        :: !committed.copied[c] && crashes < CRASHES ->
            d_step {
                crashes++;
                leftover = c + 1;
                leftover_snapshot = snapshot;
                c = 0
            };
            goto round
        :: !committed.copied[c] -> d_step { copy_chunk(c, snapshot) }
        :: else
        fi;
        c = 0;
        maybe_crash()
    :: break
    od;
    goto round;
stream:
    do
    :: committed.position < commits ->
        atomic { assert(committed.position >= confirmed); apply(committed.position) };
#ifdef POSITION_APART
        committed.position = committed.position + 1;
#endif
        d_step { check() }
    :: confirmed < durable.position ->
#ifdef CONFIRM_BEFORE_FLUSH
        atomic { confirmed = committed.position; check() }
#else
        atomic { confirmed = durable.position; check() }
#endif
#ifdef CONFIRM_BEFORE_FLUSH
    :: confirmed < committed.position -> atomic { confirmed = committed.position; check() }
#endif
    :: crashes < CRASHES -> maybe_crash()
    :: committed.position == commits && has_ended -> break
    od;
    /* Everything was copied and applied: both sides are the same. */
    atomic {
        k = 0;
        do
        :: k < KEYS -> assert(committed.row[k] == source[commits].row[k]); k++
        :: else -> break
        od;
        k = 0
    };
    done = true
}

init {
    atomic { run Source(); run Disk(); run Leftover(); run Migration() }
}
