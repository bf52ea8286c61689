"""Live migration without I/O: source, target, and the API server that owns the request.

Who does what. `Handovers` is one instance's side of all its migrations; its llumlet tells it events and does
what it answers, on the engine thread. `RequestOwner` is the API server's side of one request. Both take `now`
and name their next deadline.

Source                    what it waits for           goes on with
  PREPARING               ACK                         a stage, or FREEZING when little is left
  COPYING                 its end of the copy         the next copy or stage, GROWING, FREEZING
  GROWING                 GROW's ACK                  as after ACK
  FREEZING                Quiesced                    LAST_GROWING, LAST_COPYING, COMMITTING
  LAST_GROWING            GROW's ACK                  LAST_COPYING, COMMITTING
  LAST_COPYING            its end of the copy         the next copy, COMMITTING
  COMMITTING              ACCEPTED                    ENDED: moved
  CANCELLING              its end of the copy         ENDED
COMMIT goes with the very last copy: COMMITTING, too, may have one open, and the target tells of its failure.
From each state up to LAST_COPYING a refusal, abort, preemption, finish, lost peer, failed copy or `timeout_s`
leads to CANCELLING (a copy is open) or ENDED: aborted; a frozen request that is still there is put back.
From COMMITTING: Abort or Refuse (the target's promise never to adopt it) puts the request back; the lost peer
or `handover_timeout_s` ends it in doubt: the request is dropped here, MOVED says that it is unconfirmed, and
the target is asked not to adopt it any more; a client's abort is passed on to the target, the loss of the API
server is not; a preemption is kept for the case that the request comes back.

Target                    what it waits for           goes on with
  RESERVING               the engine's Reserved       RECEIVING (ACK), or ENDED (REFUSE)
  RECEIVING               STAGE, GROW, COMMIT         COMMITTED once COMMIT came
  COMMITTED               open copies                 ADOPTING
  ADOPTING                the engine's AdoptDone      ENDED: ADOPTED to the API server, ACCEPTED to the source
  CANCELLING              copies, engine's answers    ENDED: the reservation is free
From RESERVING, RECEIVING and COMMITTED an abort of either side, pressure, a lost peer, a failed copy, a lost
message (something is out of turn), the API server's end or a time limit of `timeout_s + handover_timeout_s`
leads to CANCELLING or ENDED; AdoptFailed does so from ADOPTING. Whoever has said Abort never adopts.

Owner                     what it waits for           goes on with
  PLACING                 AttemptPlaced               RUNNING, or FAILED after `resume_timeout_s` without any
                                                      instance
  RUNNING                 outputs                     FINISHED, or a new attempt (PLACING): when the instance
                                                      where the request is, or from which tokens are missing,
                                                      is fenced or has forgotten it; when a gap is open for
                                                      `handover_timeout_s`; FAILED after `max_attempts`
The client's abort leads from both to ABORTED. A gap is open while ADOPTED is missing for the latest hop, or
tokens before its first one. Stale epochs are answered with an abort. An abort at one hop of an attempt is
sent only when the whole attempt is over, as a source that has sent COMMIT passes it on.

What is relied upon. Messages between two instances arrive in order or not at all; any may be lost. Outputs
and notices of one instance arrive in order; a break of that way is told as Fenced, or as Forgotten where
the instance lives and has dropped its requests, and may overtake what was sent before it. Each side's end
of a copy is told (CopyDone, CopyFailed, or CancelConfirmed in bounded time after CancelCopy), also when the
peer dies: it is the one thing that is waited for without a time limit of ours, since blocks that somebody
may still write into cannot be given back. The engine answers Reserve, GrowReservation and Adopt, and tells
what befalls a request on its own thread in the same turn.
"""
