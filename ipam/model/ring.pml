// SPDX-License-Identifier: Apache-2.0

// Grant and takeover of addresses, for spin: see README.md for the abstraction, what is checked and how to run it.
//
// A step is what a node does in one piece: it takes in a message, changes its ring, and stores it. A message is a fact that
// stays: it may be taken in at any later time, many times or never. So nothing more is needed for loss, delay, repetition
// and another order, nor for nodes that crash (they take no step for a while) or die (they take no step any more).

// The size of the model.
#ifndef N
#define N 3		// nodes, 3 or 4
#endif
#ifndef S
#define S 1		// slots that are granted and taken over, 1 to 3
#endif
#ifndef L
#define L 2		// retirements, 1 to 3
#endif
#ifndef G
#define G 2		// grants, 1 to 3
#endif

// The weights of the slots W0.., their first owners O0.., and the weights F0.. of the blocks that the nodes own besides: these are
// not granted, but they vote, and are taken over.
#ifndef W0
#define W0 1
#endif
#ifndef W1
#define W1 1
#endif
#ifndef W2
#define W2 1
#endif
#ifndef O0
#define O0 0
#endif
#ifndef O1
#define O1 1
#endif
#ifndef O2
#define O2 2
#endif
#ifndef F0
#define F0 2
#endif
#ifndef F1
#define F1 2
#endif
#ifndef F2
#define F2 2
#endif
#ifndef F3
#define F3 2
#endif

// A version (epoch,count) is the number epoch*C+count. Counts start from 0; even ones are claimed registers, odd ones pending.
#define C	(2*G+1)
#define V	((L+1)*C)
#define NONE	7

// What the nodes have on disk.
byte log[N];			// the length of the log of retirements
byte known[N*S];		// the version of each slot's register
byte block[N];			// the blocks that the node has claimed, as bits

// What has been written and said.
byte reg[S*V];			// the registers that were ever written, by version; 0: none
byte newest[S];			// the newest version written of a slot
byte handed[S*V];		// the pending registers that were handed over: 1 + the length of the donor's log then
byte told[S*V*S];		// what the donor knew then, and sent along
byte acks[N*S*(L+1)];		// who has recorded what a donor has pending, as slots and blocks, by the length of the log
byte grants;			// how many there were
byte decided;			// the length of the log of retirements, as far as it is decided
byte dead[L] = NONE;
byte heir[L] = NONE;
byte named;			// of the nodes that start alike the highest that was named (see NAME)

// The survey of the reclaimer at each length of the log.
byte flying[L*N];		// the answer of a node that is under way: the slots and blocks that it speaks for
byte flown[L*N*S];		// and its ring
byte votes[L];			// the slots and blocks of those who have answered
byte answered[L];		// who has answered
byte without[L*S];		// who did not speak for a slot when it answered
byte taken[N];			// the length of the log with which a block was taken over last

hidden byte i1, i2, i3, bits, vers;
hidden byte other = NONE;

#define REG(s,v)	reg[(s)*V+(v)]
#define CLAIMED(o)	(64+(o))
#define PENDING(o,y)	(64+(o)+8*(1+(y)))
#define OWNER(r)	((r)&7)
#define FROM(r)		(((r)>>3)&7)	// 0: claimed, else 1 + the donor
#define K(n,s)		known[(n)*S+(s)]
#define CUR(n,s)	REG(s,K(n,s))
#define HANDED(s,v)	handed[(s)*V+(v)]
#define TOLD(s,v,i3)	told[((s)*V+(v))*S+(i3)]
#define ACKS(y,s,l)	acks[((y)*S+(s))*(L+1)+(l)]

#define RETIRED1(n,l)	((l) > 0 && dead[0] == (n))
#if L > 1
#define RETIRED2(n,l)	|| ((l) > 1 && dead[1] == (n))
#else
#define RETIRED2(n,l)
#endif
#if L > 2
#define RETIRED3(n,l)	|| ((l) > 2 && dead[2] == (n))
#else
#define RETIRED3(n,l)
#endif
#define RETIRED(n,l)	(RETIRED1(n,l) RETIRED2(n,l) RETIRED3(n,l))

// In its own eyes.
#define IN(n)		(!RETIRED(n,log[n]))

// Whether the node has granted the slot and not handed it over.
#define DONATES(n,s)	(FROM(CUR(n,s)) == 1+(n) && !HANDED(s,K(n,s)))

#ifdef M_ANNOUNCED
#define EFFECTIVE(n,s)	(CUR(n,s) == CLAIMED(n) || FROM(CUR(n,s)) != 0 && OWNER(CUR(n,s)) == (n))
#else
#define EFFECTIVE(n,s)	(CUR(n,s) == CLAIMED(n))
#endif
#define SPEAKS(n,s)	(IN(n) && (EFFECTIVE(n,s) || DONATES(n,s)))

#if S == 1
#define SLOTS(n)	((EFFECTIVE(n,0) || DONATES(n,0)))
#define WEIGHS(m)	(((m)&1)*W0)
#elif S == 2
#define SLOTS(n)	((EFFECTIVE(n,0) || DONATES(n,0)) + 2*(EFFECTIVE(n,1) || DONATES(n,1)))
#define WEIGHS(m)	(((m)&1)*W0 + (((m)>>1)&1)*W1)
#else
#define SLOTS(n)	((EFFECTIVE(n,0) || DONATES(n,0)) + 2*(EFFECTIVE(n,1) || DONATES(n,1)) + 4*(EFFECTIVE(n,2) || DONATES(n,2)))
#define WEIGHS(m)	(((m)&1)*W0 + (((m)>>1)&1)*W1 + (((m)>>2)&1)*W2)
#endif
#define SPOKEN(n)	(IN(n) -> (SLOTS(n) | block[n]<<S) : 0)
#if N == 3
#define WEIGHF(m)	((((m)>>S)&1)*F0 + (((m)>>(S+1))&1)*F1 + (((m)>>(S+2))&1)*F2)
#define UNIVERSE	(WEIGHS(7) + F0 + F1 + F2)
#else
#define WEIGHF(m)	((((m)>>S)&1)*F0 + (((m)>>(S+1))&1)*F1 + (((m)>>(S+2))&1)*F2 + (((m)>>(S+3))&1)*F3)
#define UNIVERSE	(WEIGHS(7) + F0 + F1 + F2 + F3)
#endif
#define MAJORITY(m)	(2*(WEIGHS(m) + WEIGHF(m)) > UNIVERSE)

// With USE_ONLY nothing is asserted but that no slot is used on two nodes.
#ifdef USE_ONLY
#define BEYOND(x) skip
#else
#define BEYOND(x) assert(x)
#endif

// unique asserts that no slot is used on two nodes that are not retired, and more: that not two of those speak for it, nor two
// that know of the same retirements.
inline unique() {
	for (i1 : 0 .. S-1) {
		for (i2 : 1 .. N-1) {
			for (i3 : 0 .. i2-1) {
				if
				:: SPEAKS(i2,i1) && SPEAKS(i3,i1) ->
					assert(RETIRED(i2,decided) || RETIRED(i3,decided) || !EFFECTIVE(i2,i1) || !EFFECTIVE(i3,i1));
					BEYOND(RETIRED(i2,decided) || RETIRED(i3,decided));
					BEYOND(log[i2] != log[i3])
				:: else
				fi
			}
		}
	}
	i1 = 0
}

#define HOLDER(b) (taken[b] == 0 -> b : heir[taken[b]-1])

// recorded asserts that a majority knows of every grant that was handed over: each slot and block by what is known to who speaks
// for it, or has written about it last, or was sent along with it.
inline recorded() {
#ifndef USE_ONLY
	for (i1 : 0 .. S-1) {
		for (i2 : 0 .. V-1) {
			if
			:: HANDED(i1,i2) ->
				bits = 0;
				for (i3 : 0 .. N-1) { bits = bits | ((K(HOLDER(i3),i1) >= i2) << (S+i3)) }
				for (i3 : 0 .. S-1) {
					if
					:: FROM(REG(i3,newest[i3])) == 0 ->
						bits = bits | ((K(OWNER(REG(i3,newest[i3])),i1) >= i2) << i3)
					:: FROM(REG(i3,newest[i3])) != 0 && !HANDED(i3,newest[i3]) ->
						bits = bits | ((K(FROM(REG(i3,newest[i3]))-1,i1) >= i2) << i3)
					:: else -> bits = bits | ((TOLD(i3,newest[i3],i1) >= i2) << i3)
					fi
				}
				BEYOND(MAJORITY(bits))
			:: else
			fi
		}
	}
#endif
	i1 = 0
}

// write asserts that no version is written twice.
inline write(n, s, v, r) {
	BEYOND(REG(s,v) == 0);
	REG(s,v) = r;
	K(n,s) = v;
	if
	:: newest[s] < v -> newest[s] = v
	:: else
	fi
}

// merge asserts that nothing is taken away from a node that is not retired.
inline merge(n, s, v) {
	if
	:: K(n,s) < v ->
		BEYOND(!SPEAKS(n,s) || RETIRED(n,decided));
		K(n,s) = v
	:: else
	fi
}

// tidy forgets what is of no use any more to a node whose log or ring has changed.
inline tidy(n) {
	for (i1 : 0 .. S-1) {
		for (i2 : 0 .. L) {
			if
			:: !DONATES(n,i1) -> ACKS(n,i1,i2) = 0
#ifndef M_LENGTH
			:: DONATES(n,i1) && i2 < log[n] -> ACKS(n,i1,i2) = 0
#endif
			:: else
			fi
		}
	}
	for (i1 : 0 .. L-1) {
		if
		:: heir[i1] == n && log[n] > i1+1 ->
			votes[i1] = 0;
			answered[i1] = 0;
			for (i2 : 0 .. S-1) { without[i1*S+i2] = 0 }
			for (i3 : 0 .. N-1) {
				flying[i1*N+i3] = 0;
				for (i2 : 0 .. S-1) { flown[(i1*N+i3)*S+i2] = 0 }
			}
		:: else
		fi
	}
	i1 = 0
}

// Who is retired takes no step once it knows. With GONE it has taken its last before that is decided.
#ifdef GONE
#define ACTS	(!RETIRED(me,decided))
#else
#define ACTS	IN(me)
#endif
#define RECLAIMER (log[me] > 0 && heir[log[me]-1] == me)

// Nodes FREE.. start alike, so it is enough to look at the runs in which they are named in this order.
#ifndef FREE
#define FREE	N
#endif
#define NAMABLE(n)	((n) < N && ((n) < FREE || (n) <= named+1))
#define NAME(n)		if :: (n) > named && (n) >= FREE -> named = n :: else fi

// A node hears of the next retirement, or the next register of a slot.
#define LEARN	d_step { log[me] < decided && ACTS -> \
	log[me]++; \
	printf("node %d learns of retirement %d\n", me, log[me]) }
#define HEAR(s)	d_step { K(me,s) < newest[s] && ACTS -> \
	vers = K(me,s)+1; \
	do :: REG(s,vers) == 0 -> vers++ :: else -> break od; \
	merge(me, s, vers); \
	printf("node %d hears of %d.%d\n", me, s, vers) }

// Grant.
#ifdef M_GRANT
#define WELCOME(w) true
#else
#define WELCOME(w) !RETIRED(w,log[me])
#endif
#define GRANT(s,w) d_step { NAMABLE(w) && w != me && grants < G && CUR(me,s) == CLAIMED(me) && ACTS && WELCOME(w) -> \
	grants++; \
	vers = K(me,s)+1; \
	write(me, s, vers, PENDING(w,me)); \
	printf("node %d grants %d to node %d: %d.%d\n", me, s, w, s, vers); \
	NAME(w) }

// Donor y asks me to record its grant, and I answer.
#ifdef M_LENGTH
#define COUNTS(y) true
#define ACKED(s) (ACKS(me,s,0) | ACKS(me,s,1) | ACKS(me,s,L))
#else
#define COUNTS(y) (log[me] >= log[y])
#define ACKED(s) ACKS(me,s,log[me])
#endif
#define ACK(s,y) d_step { y < N && y != me && K(me,s) <= K(y,s) && DONATES(y,s) && COUNTS(y) && ACTS && IN(y) \
	&& (K(me,s) < K(y,s) || (ACKS(y,s,log[me]) | SPOKEN(me)) != ACKS(y,s,log[me])) -> \
	vers = K(y,s); \
	merge(me, s, vers); \
	ACKS(y,s,log[me]) = ACKS(y,s,log[me]) | SPOKEN(me); \
	printf("node %d records %d.%d for node %d with log %d, by votes %d\n", me, s, vers, y, log[me], SPOKEN(me)) }

#ifdef M_HAND_ALONE
#define RECORDED(s) true
#else
#define RECORDED(s) MAJORITY(ACKED(s) | SPOKEN(me))
#endif
#ifdef M_HAND_RETIRED
#define RECEIVES(o) true
#else
#define RECEIVES(o) !RETIRED(o,log[me])
#endif
#define HAND(s)	d_step { DONATES(me,s) && ACTS && RECEIVES(OWNER(CUR(me,s))) && RECORDED(s) -> \
	HANDED(s,K(me,s)) = 1+log[me]; \
	for (i1 : 0 .. S-1) { TOLD(s,K(me,s),i1) = K(me,i1) } \
	printf("node %d hands over %d.%d with log %d\n", me, s, K(me,s), log[me]) }

#ifdef M_REVOKE
#define REVOCABLE(s) (FROM(CUR(me,s)) == 1+me)
#else
#define REVOCABLE(s) DONATES(me,s)
#endif
#define REVOKE(s) d_step { REVOCABLE(s) && ACTS && RETIRED(OWNER(CUR(me,s)),log[me]) -> \
	vers = K(me,s)+1; \
	write(me, s, vers, CLAIMED(me)); \
	printf("node %d takes back %d: %d.%d\n", me, s, s, vers) }

// The Grant with the donor's whole ring arrives.
#ifdef M_ACCEPT
#define GENUINE(s,v) true
#else
#define GENUINE(s,v) !RETIRED(FROM(REG(s,v))-1,log[me]) && !RETIRED(FROM(REG(s,v))-1,HANDED(s,v)-1)
#endif
#ifdef M_RING
#define MERGETOLD(s,v)
#else
#define MERGETOLD(s,v) \
	if :: log[me] < HANDED(s,v)-1 -> log[me] = HANDED(s,v)-1 :: else fi; \
	for (bits : 0 .. S-1) { merge(me, bits, TOLD(s,v,bits)) }
#endif
#define CLAIM(s,v) d_step { HANDED(s,v) && OWNER(REG(s,v)) == me && K(me,s) <= v && ACTS && !RETIRED(me,HANDED(s,v)-1) && GENUINE(s,v) -> \
	MERGETOLD(s,v); \
	vers = v+1; \
	write(me, s, vers, CLAIMED(me)); \
	printf("node %d claims %d: %d.%d\n", me, s, s, vers) }

// The reclaimer asks me, and I answer.
#ifdef M_SURVEY_LENGTH
#define ANSWERS(l) (log[heir[l]] == l+1)
#else
#define ANSWERS(l) (log[me] == l+1 && log[heir[l]] == l+1)
#endif
// DIRECT: the answer arrives at once.
#ifdef DIRECT
#define ANSWER(l) d_step { l < decided && heir[l] != me && ANSWERS(l) && ACTS && !RETIRED(heir[l],l+1) -> \
	bits = SPOKEN(me); \
	for (i1 : 0 .. S-1) { \
		merge(heir[l], i1, K(me,i1)); \
		if :: !((bits>>i1)&1) -> without[(l)*S+i1] = without[(l)*S+i1] | (1<<me) :: else fi \
	} \
	votes[l] = votes[l] | bits; \
	answered[l] = answered[l] | (1<<me); \
	other = heir[l]; \
	printf("node %d answers node %d with log %d, by votes %d\n", me, other, log[me], bits) }
#define COLLECT(n)
#else
#define ANSWER(l) d_step { l < decided && heir[l] != me && ANSWERS(l) && ACTS -> \
	bits = (l)*N+me; \
	flying[bits] = SPOKEN(me); \
	for (i1 : 0 .. S-1) { flown[bits*S+i1] = K(me,i1) } \
	printf("node %d answers node %d with log %d, by votes %d\n", me, heir[l], log[me], flying[bits]) }
#define COLLECT(n) :: d_step { n < N && RECLAIMER && flying[(log[me]-1)*N+n] && ACTS -> \
	bits = (log[me]-1)*N+n; \
	vers = log[me]-1; \
	for (i1 : 0 .. S-1) { \
		merge(me, i1, flown[bits*S+i1]); \
		flown[bits*S+i1] = 0; \
		if :: !((flying[bits]>>i1)&1) -> without[vers*S+i1] = without[vers*S+i1] | (1<<n) :: else fi \
	} \
	votes[vers] = votes[vers] | flying[bits]; \
	answered[vers] = answered[vers] | (1<<n); \
	flying[bits] = 0; \
	printf("node %d takes in the answer of node %d\n", me, n) }
#endif

// Takeover. ASKED: nothing more is to be learned from a node.
#define ASKED(n)	((n) == me || RETIRED(n,log[me]) || ((answered[log[me]-1]>>(n))&1))
#define MY(s)		OWNER(CUR(me,s))
#define YOUR(s)		(FROM(CUR(me,s))-1)
#define OFDEAD(s)	(RETIRED(MY(s),log[me]) || FROM(CUR(me,s)) != 0 && RETIRED(YOUR(s),log[me]))

#ifdef M_NO_MAJORITY
#define C1 true
#else
#define C1 MAJORITY(votes[log[me]-1] | SPOKEN(me))
#endif
#ifdef M_NO_ASKING
#define C2(s) true
#else
#define C2(s) (ASKED(MY(s)) && (FROM(CUR(me,s)) == 0 || YOUR(s) == me || RETIRED(YOUR(s),log[me]) || ((without[(log[me]-1)*S+s]>>YOUR(s))&1)))
#endif
#define NAMES(s,l)	(dead[l] == MY(s) || FROM(CUR(me,s)) != 0 && dead[l] == YOUR(s))
#ifdef M_NO_HEIRS
#define C3(s) true
#define C3BLOCK(b) true
#else
#define C3_1(s) (!NAMES(s,0) || ASKED(heir[0]))
#define B3_1(b) (dead[0] != b || ASKED(heir[0]))
#if L > 1
#define C3_2(s) && (log[me] < 2 || !(NAMES(s,0) || NAMES(s,1)) || ASKED(heir[1]))
#define B3_2(b) && (log[me] < 2 || dead[0] != b && dead[1] != b || ASKED(heir[1]))
#else
#define C3_2(s)
#define B3_2(b)
#endif
#if L > 2
#define C3_3(s) && (log[me] < 3 || !(NAMES(s,0) || NAMES(s,1) || NAMES(s,2)) || ASKED(heir[2]))
#define B3_3(b) && (log[me] < 3 || dead[0] != b && dead[1] != b && dead[2] != b || ASKED(heir[2]))
#else
#define C3_3(s)
#define B3_3(b)
#endif
#define C3(s) (C3_1(s) C3_2(s) C3_3(s))
#define C3BLOCK(b) (B3_1(b) B3_2(b) B3_3(b))
#endif
#ifdef M_NO_SURVEY
#define MAYTAKE(s) true
#define MAYTAKEBLOCK(b) true
#else
#define MAYTAKE(s) (C1 && C2(s) && C3(s))
#define MAYTAKEBLOCK(b) (C1 && C3BLOCK(b) && !((votes[log[me]-1]>>(S+b))&1))
#endif
#ifdef M_EPOCH
#define TAKENOVER(s) ((K(me,s)/C+1)*C)
#else
#define TAKENOVER(s) (log[me]*C)
#endif
#define TAKE(s)	d_step { RECLAIMER && OFDEAD(s) && !SPEAKS(me,s) && ACTS && MAYTAKE(s) -> \
	vers = TAKENOVER(s); \
	write(me, s, vers, CLAIMED(me)); \
	printf("node %d takes over %d: %d.%d\n", me, s, s, vers) }
#define TAKEBLOCK(b) d_step { RECLAIMER && RETIRED(b,log[me]) && !((block[me]>>b)&1) && ACTS && MAYTAKEBLOCK(b) -> \
	block[me] = block[me] | (1<<b); \
	if :: taken[b] < log[me] -> taken[b] = log[me] :: else fi; \
	for (i1 : 0 .. N-1) { BEYOND(i1 == me || RETIRED(me,decided) || RETIRED(i1,decided) || !((block[i1]>>b)&1)) } \
	printf("node %d takes over block %d with log %d\n", me, b, log[me]) }

// It is decided that d is retired, and that h is its heir.
#define RETIRE(d,h) d_step { decided < L && NAMABLE(d) && (NAMABLE(h) || d > named && d >= FREE && h == d+1 && h < N) && !RETIRED(d,decided) && !RETIRED(h,decided) -> \
	dead[decided] = d; \
	heir[decided] = h; \
	decided++; \
	printf("retirement %d is decided: node %d, its heir is node %d\n", decided, d, h); \
	NAME(d); \
	NAME(h) }

#if G == 1
#define CLAIMS(s,e) :: CLAIM(s,(e)*C+1)
#elif G == 2
#define CLAIMS(s,e) :: CLAIM(s,(e)*C+1) :: CLAIM(s,(e)*C+3)
#else
#define CLAIMS(s,e) :: CLAIM(s,(e)*C+1) :: CLAIM(s,(e)*C+3) :: CLAIM(s,(e)*C+5)
#endif
#if L == 1
#define ALLCLAIMS(s) CLAIMS(s,0) CLAIMS(s,1)
#elif L == 2
#define ALLCLAIMS(s) CLAIMS(s,0) CLAIMS(s,1) CLAIMS(s,2)
#else
#define ALLCLAIMS(s) CLAIMS(s,0) CLAIMS(s,1) CLAIMS(s,2) CLAIMS(s,3)
#endif
#define SLOT(s)	:: HEAR(s) \
	:: GRANT(s,0) :: GRANT(s,1) :: GRANT(s,2) :: GRANT(s,3) \
	:: ACK(s,0) :: ACK(s,1) :: ACK(s,2) :: ACK(s,3) \
	:: HAND(s) \
	:: REVOKE(s) \
	ALLCLAIMS(s) \
	:: TAKE(s)

proctype node(byte me) {
end:	do
	:: atomic {
		if
		SLOT(0)
#if S > 1
		SLOT(1)
#endif
#if S > 2
		SLOT(2)
#endif
		:: LEARN
		:: ANSWER(0)
#if L > 1
		:: ANSWER(1)
#endif
#if L > 2
		:: ANSWER(2)
#endif
		COLLECT(0) COLLECT(1) COLLECT(2) COLLECT(3)
		:: TAKEBLOCK(0) :: TAKEBLOCK(1) :: TAKEBLOCK(2) :: TAKEBLOCK(3)
		fi;
		d_step { tidy(me); if :: other < N -> tidy(other); other = NONE :: else fi; unique(); recorded() }
	}
	od
}

proctype retirements() {
end:	do
	:: RETIRE(0,1) :: RETIRE(0,2) :: RETIRE(0,3)
	:: RETIRE(1,0) :: RETIRE(1,2) :: RETIRE(1,3)
	:: RETIRE(2,0) :: RETIRE(2,1) :: RETIRE(2,3)
	:: RETIRE(3,0) :: RETIRE(3,1) :: RETIRE(3,2)
	od
}

init {
	atomic {
		REG(0,0) = CLAIMED(O0);
#if S > 1
		REG(1,0) = CLAIMED(O1);
#endif
#if S > 2
		REG(2,0) = CLAIMED(O2);
#endif
		for (i1 : 0 .. N-1) { block[i1] = 1<<i1 }
		named = FREE-1;
		run node(0);
		run node(1);
		run node(2);
#if N > 3
		run node(3);
#endif
		run retirements()
	}
}
