/*
 * Cutover and rollback: at every moment clients reach at most one of source and target, and every
 * write that was acknowledged is in what they reach next.
 *
 * One tenant goes there and back, in at most ATTEMPTS attempts. The process that moves it is killed
 * between any two steps, at most CRASHES times. What it leaves behind is settled by its guard, which
 * may be slow, or by the next step; both may be at it. The pooler is restarted at any moment, at
 * most RESTARTS times: it then forgets that it was paused and reads the alias file. Strangers, such
 * as a pooler that nobody told us about, use whichever side lets them in.
 *
 * Mutations, each of which must be refused:
 *   SKIP_FENCE              cutover without the fence
 *   FENCE_WITHOUT_ENDING    the fence keeps new sessions away and lets the old ones be
 *   SKIP_DRAIN              cutover without waiting for the final marker
 *   LOGIN_EARLY             the tenant's role may log in before the decision
 *   UNFENCE_EARLY           a rollback lowers the fence before the decision
 *   SPARE_SESSIONS          a rollback takes the role's login and lets its sessions be
 *   NO_KILL                 the guard settles a cutover that hangs, without killing it first
 *   FORGET_LATEST           the guard undoes an attempt again after a later one has begun
 */
#ifndef ATTEMPTS
#define ATTEMPTS 3
#endif
#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef RESTARTS
#define RESTARTS 1
#endif
#define WRITES 2

#define SOURCE 0
#define TARGET 1

/* The pooler. */
bool paused = false;
bit alias = SOURCE;         /* where it sends clients */
bit file = SOURCE;          /* what it reads when it is told to, or restarted */
byte restarts = 0;

/* The databases: who lets whom in. */
bool fence = false;         /* nobody may connect to the source */
bool login = false;         /* the tenant's role may log in to the target */
bool source_session = false, target_session = false;   /* a stranger is in */

/* Acknowledged writes of one side that the other one does not hold. */
byte behind_target = 0, behind_source = 0, writes = 0;

/* The control schema: the decision, and one row per attempt. */
bit owner = SOURCE;
byte latest = 0;            /* number of the latest attempt; 0 before the first */
bit goes_to[ATTEMPTS + 1];
bool flipped[ATTEMPTS + 1], undoing[ATTEMPTS + 1], settled[ATTEMPTS + 1];
bool row_locked = false;    /* of the latest attempt; ends with the session that took it */

/* The process that moves, and its guard. */
byte guarded = 0;           /* the attempt that the guard has to settle; 0 is none */
byte moving = 0;            /* the attempt whose process lives; 0 is none */
byte crashes = 0;
bool over = false;

#define source_open (!fence || source_session)
#define target_open (login || target_session)

/* A client writes: what it was told before must be there. */
inline write_source() {
    assert(behind_source == 0);
    behind_target++; writes++
}
inline write_target() {
    assert(behind_target == 0);
    behind_source++; writes++
}

proctype Client() {
    do
    :: atomic { writes < WRITES && !paused && alias == SOURCE && !fence -> write_source() }
    :: atomic { writes < WRITES && !paused && alias == TARGET && login -> write_target() }
    :: over -> break
    od
}

proctype Stranger() {
    do
    :: atomic { !fence && !source_session -> source_session = true }
    :: atomic { login && !target_session -> target_session = true }
    :: atomic { writes < WRITES && source_session -> write_source() }
    :: atomic { writes < WRITES && target_session -> write_target() }
    :: source_session -> source_session = false
    :: target_session -> target_session = false
    :: over -> break
    od
}

/* Each stream serves the side that clients do not use. */
proctype Streams() {
    do
    :: atomic { behind_target > 0 -> behind_target-- }
    :: atomic { behind_source > 0 -> behind_source-- }
    :: over -> break
    od
}

proctype Pooler() {
    do
    :: atomic { restarts < RESTARTS -> restarts++; paused = false; alias = file }
    :: over -> break
    od
}

/* At no moment both. */
proctype Monitor() {
end:
    do
    :: atomic { source_open && target_open -> assert(false) }
    od
}

inline lock_row() { atomic { !row_locked -> row_locked = true } }
inline unlock_row() { row_locked = false }

/* Let everybody back to where they were. Each part may run again. */
inline undo_traffic(n) {
    if
    :: goes_to[n] == TARGET -> fence = false; file = SOURCE
    :: else -> login = true; file = TARGET
    fi;
    alias = file;
    paused = false
}

/* Bring an attempt to its end; whoever does it holds its row. */
inline settle(n) {
    atomic { !row_locked && !flipped[n] -> undoing[n] = true } unless { flipped[n] };
    lock_row();
    if
    :: flipped[n] && !settled[n] ->
        if
        :: goes_to[n] == SOURCE -> fence = false
        :: else
        fi;
        alias = file;
        paused = false;
        settled[n] = true
    :: !flipped[n] && !settled[n] ->
        undo_traffic(n);
        settled[n] = true
#ifdef FORGET_LATEST
    :: !flipped[n] && settled[n] -> undo_traffic(n)
#else
    :: !flipped[n] && settled[n] && latest == n -> undo_traffic(n)
    :: !flipped[n] && settled[n] && latest != n
#endif
    :: flipped[n] && settled[n]
    fi;
    unlock_row()
}

/* It notices the end of the process; it may take its time, and be lost with its machine. */
proctype Guard() {
    byte n;
    do
#ifdef NO_KILL
    :: atomic { guarded > 0 -> n = guarded; guarded = 0 };
#else
    :: atomic { guarded > 0 && moving != guarded -> n = guarded; guarded = 0 };
#endif
        if
        :: settle(n)
        :: true
        fi
    :: over -> break
    od
}

/* The process is killed: its open transaction is undone, and with it its lock. */
inline maybe_crash() {
    if
    :: atomic { crashes < CRASHES -> crashes++; moving = 0 };
        if
        :: holds -> unlock_row(); holds = false
        :: else
        fi;
        goto start
    :: true
    fi
}

proctype Mover() {
    bool holds = false;
    byte n;
start:
    /* A step has the tenant to itself, and settles what a former one has left. */
    if
    :: latest > 0 && !settled[latest] -> n = latest; settle(n)
    :: else
    fi;
    if
    :: latest == ATTEMPTS -> goto finish
    :: atomic { latest < ATTEMPTS && !row_locked ->
            latest++; n = latest;
            goes_to[n] = 1 - owner;
            moving = n; guarded = n }
    fi;
    maybe_crash();
    paused = true;
    maybe_crash();
    if
    :: goes_to[n] == TARGET ->
#ifndef SKIP_FENCE
        fence = true;
        maybe_crash();
#ifndef FENCE_WITHOUT_ENDING
        source_session = false;
        maybe_crash();
#endif
#endif
#ifdef LOGIN_EARLY
        login = true;
        maybe_crash();
#endif
#ifndef SKIP_DRAIN
        if
        :: behind_target == 0
        :: goto give_up     /* the deadline */
        fi
#else
        skip
#endif
    :: else ->
        login = false;
        maybe_crash();
#ifndef SPARE_SESSIONS
        target_session = false;
        maybe_crash();
#endif
        if
        :: behind_source == 0
        :: goto give_up
        fi;
#ifdef UNFENCE_EARLY
        fence = false;
        maybe_crash()
#endif
    fi;
    /* The transaction that decides. */
    atomic { !row_locked -> row_locked = true; holds = true };
    if
    :: undoing[n] -> unlock_row(); holds = false; goto give_up
    :: else
    fi;
    maybe_crash();
    file = goes_to[n];
    maybe_crash();
    alias = file;
    maybe_crash();
    atomic {
        flipped[n] = true;
        owner = goes_to[n];
        if
        :: owner == TARGET -> login = true
        :: else
        fi;
        row_locked = false; holds = false
    };
    maybe_crash();
give_up:
    /* Its end, whichever: what it does itself and what others do for it are the same. */
    moving = 0;
    settle(n);
    guarded = 0;
    goto start;
finish:
    (guarded == 0 && !row_locked);
    over = true;
    /* Everybody is somewhere, and it is where the tenant belongs. */
    assert(!paused && alias == owner && file == owner);
    assert(fence == (owner == TARGET) && login == (owner == TARGET))
}

init {
    atomic {
        run Client(); run Stranger(); run Streams(); run Pooler(); run Monitor(); run Guard();
        run Mover()
    }
}
