//! Round robin over weighted members, exact and smooth, by pingora-load-balancing.
//!
//! The library forgets weights while a member is skipped and bursts heavy members
//! (`aaaaabcc`). The wheel therefore holds slots, not members: a member of weight n has n
//! slots, each a made-up unique address, laid out in the order of smooth weighted round
//! robin (`acaabaca`). The address carries the slot's place and the member's number, so a
//! pick allocates nothing.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora::lb::LoadBalancer;
use pingora::lb::selection::RoundRobin;

use crate::names::Weight;

/// How many turns of the wheel a pick may take before it falls back to a plain scan. With
/// concurrent pickers one turn can miss an acceptable slot (measured: one turn misses 4 %
/// of the time at 8 threads, sixteen never).
const TURNS: usize = 16;

/// A wheel over members 0 to n-1.
pub(super) struct Wheel {
    slots: LoadBalancer<RoundRobin>,
    turns: usize,
    members: usize,
    picks: AtomicUsize,
}

impl Wheel {
    /// A wheel on which each member has slots in proportion to its weight.
    pub(super) fn new(weights: &[Weight]) -> Self {
        let order = smooth_order(weights);
        let addresses = order.iter().enumerate().map(|(slot, &member)| address(slot, member));
        let slots = LoadBalancer::try_from_iter(addresses)
            .expect("socket addresses need no look-up, so a static set cannot fail");
        Self { slots, turns: TURNS * order.len(), members: weights.len(), picks: AtomicUsize::new(0) }
    }

    /// Puts the wheel where one of equal members is that has made so many picks.
    pub(super) fn skip(&self, picks: usize) {
        let order = self.turns / TURNS;
        for _ in 0..picks % order.max(1) {
            self.slots.select(b"", 1);
        }
    }

    /// Picks made so far.
    pub(super) fn picks(&self) -> usize {
        self.picks.load(Ordering::Relaxed)
    }

    /// The next member in turn that is `eligible` and takes its turn; `None` only if none is
    /// eligible. Of the eligible, some have to take every turn.
    pub(super) fn next(
        &self,
        eligible: impl Fn(usize) -> bool,
        takes_turn: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut those = (0..self.members).filter(|&member| eligible(member));
        let first = those.next()?;
        self.picks.fetch_add(1, Ordering::Relaxed);
        if those.next().is_none() {
            return Some(first);
        }
        let accept = |member: usize| eligible(member) && takes_turn(member);
        let slot = self.slots.select_with(b"", self.turns, |slot, _| member(slot).is_some_and(accept));
        slot.as_ref().and_then(member).or(Some(first))
    }
}

/// A unique address whose order is the slot's place and whose port is the member.
fn address(slot: usize, member: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::from_bits(slot as u128 + 1), member))
}

fn member(slot: &pingora::lb::Backend) -> Option<usize> {
    slot.addr.as_inet().map(|address| usize::from(address.port()))
}

/// Smooth weighted round robin, one full turn: at each step every member gains its weight,
/// the one with most goes and pays the total. Weights are reduced by their common divisor.
fn smooth_order(weights: &[Weight]) -> Vec<u16> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, weight.get())).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight.get() / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    let mut order = Vec::new();
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += weight;
        }
        // The first of equals goes, so that the order is the same on every start.
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

    fn turn(wheel: &Wheel, n: usize, accept: impl Fn(usize) -> bool) -> String {
        let letters = ["a", "b", "c", "d"];
        (0..n).filter_map(|_| wheel.next(&accept, |_| true)).map(|member| letters[member]).collect()
    }

    #[test]
    fn weights_are_smooth_and_common_factors_cost_nothing() {
        assert_eq!(turn(&Wheel::new(&weights(&[5, 1, 2])), 8, |_| true), "acaabaca");
        assert_eq!(smooth_order(&weights(&[100, 100])).len(), 2);
        assert_eq!(turn(&Wheel::new(&weights(&[1, 1, 1])), 7, |_| true), "abcabca");
    }

    #[test]
    fn proportions_hold_while_a_member_rests() {
        let wheel = Wheel::new(&weights(&[5, 1, 2]));
        let seen = turn(&wheel, 70, |member| member != 1);
        assert_eq!((seen.matches('a').count(), seen.matches('c').count()), (50, 20), "{seen}");
        assert!(!seen.contains("aaaaa"), "{seen}");
    }

    #[test]
    fn nobody_acceptable_is_none_and_a_single_one_is_found() {
        let wheel = Wheel::new(&weights(&[1, 1, 3]));
        assert_eq!(wheel.next(|_| false, |_| true), None);
        assert_eq!(wheel.next(|member| member == 1, |_| false), Some(1));
    }

    #[test]
    fn concurrent_picks_are_exact() {
        let wheel = Wheel::new(&weights(&[1, 1, 1]));
        let seen: Vec<usize> = std::thread::scope(|scope| {
            let run = || (0..1000).filter_map(|_| wheel.next(|_| true, |_| true)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let counts: Vec<usize> = (0..3).map(|m| seen.iter().filter(|&&s| s == m).count()).collect();
        assert_eq!(seen.len(), 4000);
        assert!(counts.iter().all(|count| (1333..=1334).contains(count)), "{counts:?}");
    }
}
