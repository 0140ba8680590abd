//! Exact and smooth weighted round robin, on top of pingora-load-balancing.
//!
//! Pingora ignores weights while a member is skipped, and gives heavy members their requests in bursts
//! (`aaaaabcc`). So it is given slots instead of members: a member of weight n has n slots in
//! the order of smooth weighted round robin (`acaabaca`). Each slot is a made-up unique address that
//! holds its position and its member, so picking one allocates nothing.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora::lb::LoadBalancer;
use pingora::lb::selection::RoundRobin;

use crate::names::Weight;

/// How many times a pick may go round all slots before it falls back to the first eligible member.
/// While other threads pick, one round can miss an acceptable slot (measured with 8 threads: one round
/// misses 4 % of the time, sixteen never).
const MAX_ROTATIONS_PER_PICK: usize = 16;

/// Picks members, numbered from 0, in proportion to their weights.
pub(super) struct WeightedRoundRobin {
    slots: LoadBalancer<RoundRobin>,
    max_slots_scanned: usize,
    member_count: usize,
    pick_count: AtomicUsize,
}

impl WeightedRoundRobin {
    /// One member for each weight.
    pub(super) fn new(weights: &[Weight]) -> Self {
        let order = smooth_order(weights);
        let addresses = order.iter().enumerate().map(|(slot, &member)| slot_address(slot, member));
        let slots = LoadBalancer::try_from_iter(addresses)
            .expect("socket addresses need no look-up, so a static set cannot fail");
        Self {
            slots,
            max_slots_scanned: MAX_ROTATIONS_PER_PICK * order.len(),
            member_count: weights.len(),
            pick_count: AtomicUsize::new(0),
        }
    }

    /// Advances by this many picks without use.
    pub(super) fn advance(&self, picks: usize) {
        let slot_count = self.max_slots_scanned / MAX_ROTATIONS_PER_PICK;
        for _ in 0..picks % slot_count.max(1) {
            self.slots.select(b"", 1);
        }
    }

    /// How many members have been picked so far.
    pub(super) fn pick_count(&self) -> usize {
        self.pick_count.load(Ordering::Relaxed)
    }

    /// Picks the next member in turn that is eligible and takes its turn; `None` only if none is
    /// eligible. At least one eligible member must take every turn.
    pub(super) fn pick(
        &self,
        is_eligible: impl Fn(usize) -> bool,
        takes_turn: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut eligible = (0..self.member_count).filter(|&member| is_eligible(member));
        let first = eligible.next()?;
        self.pick_count.fetch_add(1, Ordering::Relaxed);
        if eligible.next().is_none() {
            return Some(first);
        }
        let accept = |member: usize| is_eligible(member) && takes_turn(member);
        let slot = self
            .slots
            .select_with(b"", self.max_slots_scanned, |slot, _| slot_member(slot).is_some_and(accept));
        slot.as_ref().and_then(slot_member).or(Some(first))
    }
}

/// The IP address is the position of the slot, since Pingora sorts by address; the port is the member.
fn slot_address(slot: usize, member: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::from_bits(slot as u128 + 1), member))
}

fn slot_member(slot: &pingora::lb::Backend) -> Option<usize> {
    slot.addr.as_inet().map(|address| usize::from(address.port()))
}

/// How many turns each member has in the shortest sequence that has the proportions of the weights.
pub(super) fn turns_per_round(weights: &[Weight]) -> Box<[u32]> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, weight.get())).max(1);
    weights.iter().map(|weight| u32::from(weight.get() / divisor)).collect()
}

/// The order of one round of smooth weighted round robin: at each step the credit of every member grows
/// by its weight; the member with the most is next and pays the total. Weights are divided by their
/// greatest common divisor first.
fn smooth_order(weights: &[Weight]) -> Vec<u16> {
    let weights: Vec<i64> = turns_per_round(weights).iter().map(|turns| i64::from(*turns)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    let mut order = Vec::new();
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += weight;
        }
        // Of equal members the first, so that the order is the same after every start; `max_by_key`
        // returns the last.
        let next = (0..credit.len()).rev().max_by_key(|&member| credit[member]).unwrap_or(0);
        credit[next] -= total;
        order.push(u16::try_from(next).unwrap_or(u16::MAX));
    }
    order
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(weights: &[u16]) -> Vec<Weight> {
        weights.iter().map(|&weight| Weight::new(weight).unwrap()).collect()
    }

    fn pick_letters(
        round_robin: &WeightedRoundRobin,
        n: usize,
        is_eligible: impl Fn(usize) -> bool,
    ) -> String {
        let letters = ["a", "b", "c", "d"];
        (0..n)
            .filter_map(|_| round_robin.pick(&is_eligible, |_| true))
            .map(|member| letters[member])
            .collect()
    }

    #[test]
    fn picks_are_spread_smoothly_and_weights_are_reduced() {
        assert_eq!(pick_letters(&WeightedRoundRobin::new(&weights(&[5, 1, 2])), 8, |_| true), "acaabaca");
        assert_eq!(smooth_order(&weights(&[100, 100])).len(), 2);
        assert_eq!(pick_letters(&WeightedRoundRobin::new(&weights(&[1, 1, 1])), 7, |_| true), "abcabca");
    }

    #[test]
    fn proportions_hold_while_a_member_is_skipped() {
        let round_robin = WeightedRoundRobin::new(&weights(&[5, 1, 2]));
        let picked = pick_letters(&round_robin, 70, |member| member != 1);
        assert_eq!((picked.matches('a').count(), picked.matches('c').count()), (50, 20), "{picked}");
        assert!(!picked.contains("aaaaa"), "{picked}");
    }

    #[test]
    fn no_eligible_member_gives_none_and_a_single_one_is_always_picked() {
        let round_robin = WeightedRoundRobin::new(&weights(&[1, 1, 3]));
        assert_eq!(round_robin.pick(|_| false, |_| true), None);
        assert_eq!(round_robin.pick(|member| member == 1, |_| false), Some(1));
    }

    #[test]
    fn picks_of_concurrent_threads_are_exact() {
        let round_robin = WeightedRoundRobin::new(&weights(&[1, 1, 1]));
        let picks: Vec<usize> = std::thread::scope(|scope| {
            let run = || (0..1000).filter_map(|_| round_robin.pick(|_| true, |_| true)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let counts: Vec<usize> =
            (0..3).map(|member| picks.iter().filter(|&&pick| pick == member).count()).collect();
        assert_eq!(picks.len(), 4000);
        assert!(counts.iter().all(|count| (1333..=1334).contains(count)), "{counts:?}");
    }
}
