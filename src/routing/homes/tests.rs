//! Tests of the memory of homes.

#![allow(clippy::print_stdout, reason = "measurements are printed")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NOW: u32 = 1_795_000_000;

fn homes() -> Homes {
    Homes::with_hash_key(1 << 20, HashKey::from_bytes(*b"0123456789abcdef"))
}

fn found_on(homes: &Homes, resource: &str) -> Home {
    Home { resource: homes.resource_tag(resource), maker: None, made_at: None, lags: false }
}

fn made_on(homes: &Homes, resource: &str, client: &str, made_at: u32) -> Home {
    let maker = Some(homes.owner_tag(client));
    Home { resource: homes.resource_tag(resource), maker, made_at: Some(made_at), lags: true }
}

fn changes(homes: &Homes) -> Vec<Change> {
    let mut changes = Vec::new();
    assert!(homes.take_changes(&mut changes));
    changes
}

fn all_entries(homes: &Homes) -> BTreeMap<ObjectKey, StoredHome> {
    let (mut position, mut entries) = (SnapshotPosition::default(), Vec::new());
    while homes.copy_entries(&mut position, &mut entries) {}
    let by_key: BTreeMap<_, _> = entries.iter().map(|entry| (entry.key, *entry)).collect();
    assert_eq!(by_key.len(), entries.len(), "no key is there twice");
    by_key
}

/// Reads the resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn an_object_is_found_where_it_was_made_until_it_is_forgotten() {
    let homes = homes();
    let key = homes.key_of(b"resp_1");
    assert_eq!(homes.find(key, NOW), None);
    let home = made_on(&homes, "east", "team-a", NOW);
    homes.learn(key, home, NOW);
    assert_eq!(homes.find(key, NOW + 1), Some(home));
    assert_eq!(homes.find(homes.key_of(b"resp_2"), NOW), None);
    homes.forget(key);
    assert_eq!(homes.find(key, NOW), None);
    assert_eq!(homes.statistics().entries, 0);
}

#[test]
fn keys_and_tags_depend_on_the_hash_key_alone() {
    let (one, same, other) = (homes(), homes(), Homes::new(1 << 20));
    assert_eq!(one.key_of(b"file-1"), same.key_of(b"file-1"));
    assert_ne!(one.key_of(b"file-1"), other.key_of(b"file-1"));
    assert_ne!(other.hash_key(), Homes::new(1 << 20).hash_key());
    // What is on disk stays readable.
    let reference = HashKey::from_bytes(std::array::from_fn(|index| index as u8));
    let reference = Homes::with_hash_key(1, reference);
    let message: Vec<u8> = (0..15).collect();
    assert_eq!(reference.key_of(&message).hash(), 0xa129_ca61_49be_45e5, "the vector of the SipHash paper");
    assert_eq!(format!("{:?}", one.hash_key()), "HashKey(…)", "it is a secret");
}

#[test]
fn what_is_learned_later_keeps_who_made_it_and_when() {
    let homes = homes();
    let key = homes.key_of(b"resp_1");
    let made = made_on(&homes, "east", "team-a", NOW);
    let moved = Home { resource: homes.resource_tag("west"), ..made };
    let made_again = made_on(&homes, "west", "team-b", NOW + 9);
    let made_by_nobody = Home { maker: None, ..made_again };
    for (before, learned, expected) in [
        (made, found_on(&homes, "east"), made),
        (made, found_on(&homes, "west"), moved),
        (made, made_again, made_again),
        (made, made_by_nobody, Home { maker: made.maker, ..made_again }),
        (found_on(&homes, "east"), made_again, made_again),
        (found_on(&homes, "east"), found_on(&homes, "west"), found_on(&homes, "west")),
    ] {
        homes.forget(key);
        homes.learn(key, before, NOW);
        homes.learn(key, learned, NOW);
        assert_eq!(homes.find(key, NOW), Some(expected), "{before:?}, {learned:?}");
        let counts = homes.statistics().entries_by_resource;
        assert_eq!(counts, BTreeMap::from([(expected.resource, 1)]));
    }
}

#[test]
fn changes_are_recorded_once_and_uses_at_most_once_an_hour() {
    let homes = homes();
    let (key, home) = (homes.key_of(b"file-1"), found_on(&homes, "east"));
    homes.learn(homes.key_of(b"file-0"), home, NOW);
    assert_eq!(changes(&homes), [], "nobody has asked for them");
    homes.start_recording_changes();
    homes.learn(key, home, NOW);
    homes.learn(key, home, NOW);
    assert_eq!(changes(&homes), [Change::Stored(StoredHome { key, home, used_at: NOW })]);
    let uses: Vec<Change> = (1..=4 * 3600)
        .flat_map(|second| {
            homes.find(key, NOW + second).unwrap();
            changes(&homes)
        })
        .collect();
    assert_eq!(uses.len(), 4, "{uses:?}");
    homes.forget(key);
    homes.forget(key);
    assert_eq!(changes(&homes), [Change::Forgotten(key)]);
}

#[test]
fn changes_that_nobody_takes_are_bounded_and_their_loss_is_told_once() {
    let homes = Homes::new(32 << 20);
    homes.start_recording_changes();
    let home = found_on(&homes, "east");
    for id in 0..600_000_u32 {
        homes.learn(homes.key_of(&id.to_le_bytes()), home, NOW);
    }
    let mut taken = Vec::new();
    assert!(!homes.take_changes(&mut taken));
    assert!((200_000..300_000).contains(&taken.len()), "{}", taken.len());
    assert!(homes.take_changes(&mut taken));
}

#[test]
fn the_least_used_make_room_and_those_with_a_maker_last_if_owners_are_enforced() {
    for enforced in [false, true] {
        let homes = Homes::new(1 << 18);
        homes.set_prefers_makers(enforced);
        let capacity = homes.statistics().capacity as u32;
        let count = capacity / 4;
        let key = |id: u32| homes.key_of(&id.to_le_bytes());
        // A quarter with a maker, the oldest; then found ones, of which the first quarter is used all the time.
        for id in 0..count {
            homes.learn(key(id), made_on(&homes, "east", "team-a", NOW), NOW);
            homes.learn(key(count + id), found_on(&homes, "east"), NOW + 1);
        }
        let mut now = NOW + 1;
        for id in 2 * count..8 * count {
            now += 1;
            homes.learn(key(id), found_on(&homes, "west"), now);
            // Each of the used ones every 500 s, while others are replaced within 5,000.
            for used in (count..2 * count).filter(|used| used % 500 == now % 500) {
                homes.find(key(used), now);
            }
        }
        let remembered = |ids: std::ops::Range<u32>| {
            ids.filter(|id| homes.find(key(*id), now).is_some()).count() as f64 / f64::from(count)
        };
        let (made, used) = (remembered(0..count), remembered(count..2 * count));
        assert!(used > 0.99, "{used} of those in use are left");
        assert!(if enforced { made == 1.0 } else { made < 0.1 }, "{made} of those with a maker are left");
        let statistics = homes.statistics();
        assert!(statistics.entries > u64::from(capacity) * 95 / 100, "{statistics:?}");
        assert_eq!(statistics.evicted + statistics.entries, u64::from(8 * count));
        assert_eq!(statistics.evicted_with_maker > 0, !enforced, "{statistics:?}");
    }
}

#[test]
fn where_only_entries_with_a_maker_are_left_they_replace_each_other() {
    let homes = homes();
    homes.set_prefers_makers(true);
    let count = homes.statistics().capacity as u32 * 2;
    for id in 0..count {
        homes.learn(homes.key_of(&id.to_le_bytes()), made_on(&homes, "east", "team-a", NOW), NOW + id);
    }
    let before = homes.statistics();
    assert!(before.evicted_with_maker > u64::from(count / 3) && before.evicted == before.evicted_with_maker);
    let found = homes.key_of(b"found later");
    homes.learn(found, found_on(&homes, "east"), NOW + count);
    assert_eq!(homes.find(found, NOW + count), None);
    assert_eq!(homes.statistics().evicted_with_maker, before.evicted_with_maker);
}

#[test]
fn two_million_fit_into_64_mib_which_are_not_touched_before() {
    let resident = resident_bytes();
    let large = Homes::new(4 << 30);
    assert_eq!(large.find(large.key_of(b"x"), NOW), None);
    assert!(large.statistics().capacity > 130_000_000);
    assert!(resident_bytes() < resident + (1 << 30), "the memory is only reserved");
    assert!(Homes::new(DEFAULT_MEMORY_BYTES).statistics().bytes <= DEFAULT_MEMORY_BYTES);
    // A 16th of it.
    let homes = Homes::with_hash_key(DEFAULT_MEMORY_BYTES / 16, HashKey::from_bytes(*b"0123456789abcdef"));
    for id in 0..125_000_u32 {
        homes.learn(homes.key_of(&id.to_le_bytes()), found_on(&homes, "east"), NOW);
    }
    let statistics = homes.statistics();
    assert_eq!((statistics.entries, statistics.evicted), (125_000, 0));
    assert_eq!(homes.entries_of(homes.resource_tag("east")), 125_000);
    // Nor are more than a few lost on the way to another memory, in whatever order they come.
    let copy = Homes::with_hash_key(DEFAULT_MEMORY_BYTES / 16, homes.hash_key());
    all_entries(&homes).into_values().for_each(|entry| copy.store(entry));
    let second_copy = Homes::with_hash_key(DEFAULT_MEMORY_BYTES / 16, homes.hash_key());
    let (mut position, mut entries) = (SnapshotPosition::default(), Vec::new());
    while copy.copy_entries(&mut position, &mut entries) {
        entries.drain(..).for_each(|entry| second_copy.store(entry));
    }
    let (copied, original) = (all_entries(&second_copy), all_entries(&homes));
    assert!(copied.len() >= original.len() - 25, "{} of {}", copied.len(), original.len());
    assert!(copied.iter().all(|(key, entry)| original.get(key) == Some(entry)));
}

#[test]
fn a_copy_of_a_nearly_full_memory_misses_no_entry_that_moves_meanwhile() {
    let homes = Homes::with_hash_key(1 << 16, HashKey::from_bytes([7; HashKey::LENGTH]));
    homes.start_recording_changes();
    let replica = Homes::with_hash_key(1 << 20, homes.hash_key());
    let count = homes.statistics().capacity as u32 * 9 / 10;
    let mut position = SnapshotPosition::default();
    let mut entries = Vec::new();
    let mut goes_on = true;
    for id in 0..count {
        if id == count * 8 / 10 {
            assert!(homes.take_changes(&mut Vec::new()));
        }
        if id > count * 8 / 10 && id.is_multiple_of(100) && goes_on {
            goes_on = homes.copy_entries(&mut position, &mut entries);
        }
        homes.learn(homes.key_of(&id.to_le_bytes()), found_on(&homes, "east"), NOW);
    }
    while homes.copy_entries(&mut position, &mut entries) {}
    entries.into_iter().for_each(|entry| replica.store(entry));
    let changes = changes(&homes);
    assert!(changes.len() > count as usize * 2 / 10, "some entries have moved: {}", changes.len());
    for change in changes {
        let Change::Stored(entry) = change else { panic!("nothing was forgotten") };
        replica.store(entry);
    }
    assert_eq!((homes.statistics().evicted, replica.statistics().entries), (0, u64::from(count)));
}

#[test]
fn many_threads_find_what_each_has_learned() {
    let homes = Homes::new(8 << 20);
    homes.start_recording_changes();
    let (threads, ids) = (4_u32, 10_000_u32);
    let replica = Homes::with_hash_key(8 << 20, homes.hash_key());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let homes = &homes;
            scope.spawn(move || {
                let home = found_on(homes, &format!("r{thread}"));
                for id in 0..ids {
                    let key = homes.key_of(&(thread * ids + id).to_le_bytes());
                    homes.learn(key, home, NOW);
                    assert_eq!(homes.find(key, NOW), Some(home));
                    if id % 3 == 0 {
                        homes.forget(key);
                    }
                    if id % 50 == 0 {
                        // One that all threads write.
                        homes.learn(homes.key_of(b"shared"), home, NOW);
                    }
                }
            });
        }
        // A follower: a snapshot of some moment, and all changes.
        let mut position = SnapshotPosition::default();
        loop {
            let mut entries = Vec::new();
            let goes_on = homes.copy_entries(&mut position, &mut entries);
            entries.into_iter().for_each(|entry| replica.store(entry));
            if !goes_on {
                break;
            }
        }
    });
    for change in changes(&homes) {
        match change {
            Change::Stored(entry) => replica.store(entry),
            Change::Forgotten(key) => replica.forget(key),
        }
    }
    let statistics = homes.statistics();
    assert_eq!(statistics.entries, u64::from(threads * (ids - ids.div_ceil(3)) + 1));
    assert_eq!(statistics.entries_by_resource.values().sum::<u64>(), statistics.entries);
    assert_eq!(all_entries(&homes), all_entries(&replica));
}

#[derive(Clone, Debug)]
enum Step {
    Learn { id: u8, resource: u8, maker: Option<u8>, is_made: bool, lags: bool },
    Find { id: u8 },
    Forget { id: u8 },
    Wait { seconds: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..20_u8, 0..3_u8, proptest::option::of(0..3_u8), any::<bool>(), any::<bool>()).prop_map(
            |(id, resource, maker, is_made, lags)| Step::Learn { id, resource, maker, is_made, lags }
        ),
        4 => (0..20_u8).prop_map(|id| Step::Find { id }),
        1 => (0..20_u8).prop_map(|id| Step::Forget { id }),
        1 => (0..9_000_u32).prop_map(|seconds| Step::Wait { seconds }),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn it_remembers_as_a_plain_map_does_and_its_changes_tell_all(steps in steps(), copied_after in 0..120_usize) {
        let homes = homes();
        homes.start_recording_changes();
        let replica = homes_of(&homes);
        let mut model: BTreeMap<u8, Home> = BTreeMap::new();
        let mut now = NOW;
        let key = |id: u8| homes.key_of(&[id]);
        for (index, step) in steps.into_iter().enumerate() {
            if index == copied_after {
                all_entries(&homes).into_values().for_each(|entry| replica.store(entry));
            }
            match step {
                Step::Learn { id, resource, maker, is_made, lags } => {
                    let learned = Home {
                        resource: homes.resource_tag(&resource.to_string()),
                        maker: maker.map(|maker| homes.owner_tag(&maker.to_string())),
                        made_at: is_made.then_some(now),
                        lags,
                    };
                    homes.learn(key(id), learned, now);
                    let entry = model.entry(id).or_insert(learned);
                    entry.resource = learned.resource;
                    entry.maker = learned.maker.or(entry.maker);
                    if is_made {
                        (entry.made_at, entry.lags) = (learned.made_at, learned.lags);
                    }
                }
                Step::Find { id } => prop_assert_eq!(homes.find(key(id), now), model.get(&id).copied()),
                Step::Forget { id } => {
                    homes.forget(key(id));
                    model.remove(&id);
                }
                Step::Wait { seconds } => now += seconds,
            }
        }
        let known = all_entries(&homes).into_iter().map(|(key, entry)| (key, entry.home));
        let known: BTreeMap<_, _> = known.collect();
        prop_assert_eq!(&known, &model.iter().map(|(id, home)| (key(*id), *home)).collect());
        prop_assert_eq!(homes.statistics().entries, model.len() as u64);
        for change in changes(&homes) {
            match change {
                Change::Stored(entry) => replica.store(entry),
                Change::Forgotten(key) => replica.forget(key),
            }
        }
        let told: BTreeMap<_, _> =
            all_entries(&replica).into_iter().map(|(key, entry)| (key, entry.home)).collect();
        prop_assert_eq!(known, told);
    }
}

fn homes_of(other: &Homes) -> Homes {
    Homes::with_hash_key(1 << 20, other.hash_key())
}
