// SPDX-License-Identifier: Apache-2.0

// How one entry of the log of retirements is decided: Paxos whose acceptors are slots that move, for spin. See README.md.
//
// As in ring.pml a step is what a node does in one piece, and a message is a fact that may be taken in later, many times or
// never.

#ifndef N
#define N 3		// nodes, 3 or 4
#endif
#ifndef S
#define S 3		// slots
#endif
#ifndef B
#define B 3		// ballots; ballot b proposes value b, unless it finds another
#endif
#ifndef M
#define M 2		// moves of slots
#endif

// What the nodes have on disk.
byte promised[N];
byte accepted[N];		// the ballot of the proposal
byte learned[N];		// what is decided; 0: nothing
byte speaks[N];			// the slots that the node speaks for, as bits
byte owners[N];			// the nodes that it knows to own something, as bits

// The ballots, from 1.
byte proposer[B+1] = N;
byte value[B+1];		// what was proposed; 0: nothing yet
byte promises[B+1];		// the slots whose promise the proposer has counted
byte accepts[B+1];		// the slots whose acceptance it has counted
byte voters[B+1];		// the nodes behind the promises
byte accepters[B+1];		// the nodes behind the acceptances

// The answer of a node to a proposer that is under way.
byte flying[(B+1)*N];		// the slots that it speaks for
byte flown[(B+1)*N];		// 8 * what it had promised + what it had accepted then

// The slots that were handed over and have not arrived.
byte to[S] = N;			// the recipient; N: not under way
byte told[S];			// what the donor had promised and accepted
byte saw[S];			// what the donor knew to be decided
byte moves;

byte chosen;			// what is decided

hidden byte b1, i1, n1;

#define BIT(m,i)	(((m)>>(i))&1)
#define COUNT(m)	(BIT(m,0) + BIT(m,1) + BIT(m,2) + BIT(m,3) + BIT(m,4) + BIT(m,5) + BIT(m,6) + BIT(m,7))
#define MAX(a,b)	((a) > (b) -> (a) : (b))

#ifdef M_NODES
#define MAJORITY(slots,nodes) (2*COUNT((nodes) | 1<<me) > COUNT(owners[me]))
#else
#define MAJORITY(slots,nodes) (2*COUNT((slots) | speaks[me]) > S)
#endif

// join merges the votes of another node, or what it knows to be decided.
inline join(p, a, d) {
	if
	:: learned[me] == 0 && d != 0 -> learned[me] = d; promised[me] = 0; accepted[me] = 0
	:: learned[me] == 0 && d == 0 ->
		promised[me] = MAX(promised[me], p);
		accepted[me] = MAX(accepted[me], a)
	:: else
	fi
}

#define OPEN	(learned[me] == 0)

#ifdef M_BELOW
#define STANDS(p,b) ((p) >= b)
#else
#define STANDS(p,b) ((p) == b)
#endif
// tidy forgets answers that are of no use any more.
inline tidy() {
	for (b1 : 1 .. B) {
		if
		:: proposer[b1] == me && (!OPEN || promised[me] > b1 || value[b1] != 0) ->
			promises[b1] = 0;
			voters[b1] = 0
		:: else
		fi;
		if
		:: proposer[b1] == me && !(OPEN && STANDS(promised[me],b1)) ->
			accepts[b1] = 0;
			accepters[b1] = 0;
			for (i1 : 0 .. N-1) { flying[b1*N+i1] = 0; flown[b1*N+i1] = 0 }
		:: else
		fi
	}
	b1 = 0
}

// A node asks for promises.
#define BEGIN(b) d_step { b <= B && OPEN && proposer[b] == N && promised[me] < b -> \
	proposer[b] = me; \
	promised[me] = b; \
	printf("node %d begins ballot %d\n", me, b) }

// The proposer has the promises that it needs: it takes the value that was accepted last, or else its own.
#ifdef M_IGNORE
#define VALUE(b) b
#else
#define VALUE(b) (accepted[me] == 0 -> b : value[accepted[me]])
#endif
#define PROPOSE(b) d_step { b <= B && OPEN && proposer[b] == me && value[b] == 0 && promised[me] == b && MAJORITY(promises[b], voters[b]) -> \
	value[b] = VALUE(b); \
	accepted[me] = b; \
	printf("node %d proposes %d with ballot %d\n", me, value[b], b) }

#define DECIDE(b) d_step { b <= B && OPEN && proposer[b] == me && value[b] != 0 && STANDS(promised[me],b) && accepted[me] == b && MAJORITY(accepts[b], accepters[b]) -> \
	printf("node %d decides %d with ballot %d\n", me, value[b], b); \
	assert(chosen == 0 || chosen == value[b]); \
	chosen = value[b]; \
	learned[me] = value[b]; \
	promised[me] = 0; \
	accepted[me] = 0 }

// A node hears of a promise, of a proposal, of the decision.
#define HEAR(b) d_step { b <= B && OPEN && proposer[b] != N && proposer[b] != me && promised[me] < b -> \
	join(b, 0, 0); \
	printf("node %d promises ballot %d\n", me, b) }
#define FOLLOW(b) d_step { b <= B && OPEN && value[b] != 0 && accepted[me] < b -> \
	join(b, b, 0); \
	printf("node %d accepts ballot %d, has promised %d\n", me, b, promised[me]) }
#define LEARN d_step { OPEN && chosen != 0 -> \
	join(0, 0, chosen); \
	printf("node %d learns %d\n", me, chosen) }

// It answers the proposer of a ballot, who counts that.
#ifdef M_NODES
#define VOTER(m,n) m = m | 1<<n
#else
#define VOTER(m,n) skip
#endif
#define ANSWER(b) d_step { b <= B && OPEN && proposer[b] != N && proposer[b] != me && STANDS(promised[me],b) && learned[proposer[b]] == 0 -> \
	flying[(b)*N+me] = speaks[me] | 128; \
	flown[(b)*N+me] = 8*promised[me] + accepted[me]; \
	printf("node %d answers ballot %d for slots %d, has accepted %d\n", me, b, speaks[me], accepted[me]) }
#define COLLECT(b,n) d_step { b <= B && n < N && proposer[b] == me && OPEN && flying[(b)*N+n] != 0 -> \
	i1 = (b)*N+n; \
	if \
	:: value[b] == 0 -> \
		promises[b] = promises[b] | (flying[i1] & 127); \
		VOTER(voters[b], n) \
	:: else \
	fi; \
	if \
	:: flown[i1]%8 == b -> accepts[b] = accepts[b] | (flying[i1] & 127); VOTER(accepters[b], n) \
	:: else \
	fi; \
	join(flown[i1]/8, flown[i1]%8, 0); \
	flying[i1] = 0; \
	flown[i1] = 0; \
	printf("node %d takes in the answer of node %d to ballot %d\n", me, n, b) }

#ifdef M_NODES
#define OWNERS(n) \
	owners[me] = 1<<(n); \
	for (n1 : 0 .. N-1) { if :: speaks[n1] -> owners[me] = owners[me] | 1<<n1 :: else fi } \
	n1 = 0;
#else
#define OWNERS(n)
#endif

// A slot moves.
#define GIVE(s,n) d_step { s < S && n < N && n != me && moves < M && BIT(speaks[me],s) -> \
	moves++; \
	speaks[me] = speaks[me] & ~(1<<(s)); \
	to[s] = n; \
	told[s] = 8*promised[me] + accepted[me]; \
	saw[s] = learned[me]; \
	OWNERS(n) \
	printf("node %d gives slot %d to node %d\n", me, s, n) }
#ifdef M_FORGET
#define BRING(s)
#else
#define BRING(s) join(told[s]/8, told[s]%8, saw[s]);
#endif
#define GET(s) d_step { s < S && to[s] == me -> \
	to[s] = N; \
	BRING(s) \
	speaks[me] = speaks[me] | 1<<(s); \
	OWNERS(me) \
	told[s] = 0; \
	saw[s] = 0; \
	printf("node %d has slot %d\n", me, s) }

#define BALLOT(b) :: BEGIN(b) :: PROPOSE(b) :: DECIDE(b) :: HEAR(b) :: FOLLOW(b) :: ANSWER(b) \
	:: COLLECT(b,0) :: COLLECT(b,1) :: COLLECT(b,2) :: COLLECT(b,3)
#define SLOT(s) :: GIVE(s,0) :: GIVE(s,1) :: GIVE(s,2) :: GIVE(s,3) :: GET(s)

proctype node(byte me) {
end:	do
	:: atomic {
		if
		BALLOT(1)
		BALLOT(2)
#if B > 2
		BALLOT(3)
#endif
		SLOT(0)
		SLOT(1)
		SLOT(2)
#if S > 3
		SLOT(3)
#endif
#if S > 4
		SLOT(4)
#endif
		:: LEARN
		fi;
		d_step { tidy() }
	}
	od
}

init {
	atomic {
		for (i1 : 0 .. S-1) {
			speaks[i1%N] = speaks[i1%N] | 1<<i1
		}
		for (i1 : 0 .. N-1) { owners[i1] = (S < N -> (1<<S)-1 : (1<<N)-1) }
		run node(0);
		run node(1);
		run node(2);
#if N > 3
		run node(3);
#endif
	}
}
