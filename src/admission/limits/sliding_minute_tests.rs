use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn what_was_used_counts_for_a_minute_after_its_second() {
    let mut minute = SlidingMinute::default();
    minute.add(5, at(1_999));
    minute.add(7, at(2_000));
    for (now, expected) in [(2_000, 12), (61_999, 12), (62_000, 7), (62_999, 7), (63_000, 0), (1_000_000, 0)]
    {
        assert_eq!(minute.total(at(now)), expected, "{now}");
    }
}

#[test]
fn a_reservation_counts_as_long_as_it_lasts_and_then_from_its_beginning() {
    let mut minute = SlidingMinute::default();
    let early = minute.reserve(100, at(0));
    let late = minute.reserve(10, at(200_000));
    assert_eq!(minute.total(at(200_000)), 110);
    // Its minute is over.
    minute.settle(100, early, 80, at(210_000));
    assert_eq!(minute.total(at(210_000)), 10);
    // What it used beyond its reservation counts from its end.
    minute.settle(10, late, 25, at(240_000));
    assert_eq!(minute.total(at(240_000)), 25);
    assert_eq!(minute.total(at(261_000)), 15);
    assert_eq!(minute.total(at(301_000)), 0);
}

#[test]
fn a_hint_says_when_an_amount_fits() {
    let mut minute = SlidingMinute::default();
    minute.add(60, at(500));
    minute.add(30, at(10_500));
    for (amount, expected) in [(10, 0), (11, 41_000), (70, 41_000), (71, 51_000), (100, 51_000)] {
        assert_eq!(minute.time_until_fits(amount, 100, &[], at(20_000)), at(expected), "{amount}");
    }
    assert_eq!(minute.time_until_empty(at(20_000)), at(51_000));
    // It fits as soon as a request ends that has been in progress for more than a minute.
    let mut minute = SlidingMinute::default();
    minute.reserve(100, at(0));
    assert_eq!(minute.time_until_fits(1, 100, &[], at(30_000)), at(31_000));
    assert_eq!(minute.time_until_fits(1, 100, &[], at(300_000)), at(1_000));
    assert_eq!(SlidingMinute::default().time_until_empty(at(5)), Duration::ZERO);
}

/// One step of an interleaving.
#[derive(Clone, Debug)]
enum Step {
    Reserve { amount: u64 },
    Settle { index: usize, used_share: f64 },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..200).prop_map(|amount| Step::Reserve { amount }),
        (0usize..20, 0.0..1.0f64).prop_map(|(index, used_share)| Step::Settle { index, used_share }),
        (0u64..30_000).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    /// A list of all requests tells what is exact: what one has used since its reservation, for a minute.
    #[test]
    fn no_interleaving_uses_more_than_the_limit_in_any_minute(
        limit in 1u64..500, steps in prop::collection::vec(step(), 1..200)
    ) {
        let (mut minute, mut now) = (SlidingMinute::default(), 0u64);
        let mut running: Vec<(u64, u64, ReservedAt)> = Vec::new();
        let mut ended: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait { millis } => now += millis,
                Step::Reserve { amount } => {
                    if minute.total(at(now)) + amount <= limit {
                        running.push((amount, now, minute.reserve(amount, at(now))));
                    } else if amount <= limit && running.is_empty() {
                        let wait = minute.time_until_fits(amount, limit, &[], at(now));
                        let mut later = minute.clone();
                        prop_assert!(later.total(at(now) + wait) + amount <= limit);
                        let just_before = at(now) + wait - Duration::from_millis(1);
                        let mut earlier = minute.clone();
                        prop_assert!(earlier.total(just_before) + amount > limit);
                    }
                }
                Step::Settle { index, used_share } => {
                    if index < running.len() {
                        let (amount, since, reserved_at) = running.swap_remove(index);
                        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a part of a small number")]
                        let used = (amount as f64 * used_share) as u64;
                        minute.settle(amount, reserved_at, used, at(now));
                        ended.push((used, since));
                    }
                }
            }
            let reserved: u64 = running.iter().map(|(amount, ..)| amount).sum();
            let recent = ended.iter().filter(|(_, since)| now - since < 60_000).map(|(used, _)| used).sum::<u64>();
            let counted = minute.total(at(now));
            prop_assert!(counted >= reserved + recent, "{counted} < {reserved} + {recent}");
            prop_assert!(counted <= limit);
            let a_second_more = ended.iter().filter(|(_, since)| now - since < 61_000).map(|(used, _)| used).sum::<u64>();
            prop_assert!(counted <= reserved + a_second_more);
        }
    }
}
