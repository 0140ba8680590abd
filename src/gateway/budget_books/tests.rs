//! Tests of the books of budgets, with real files and threads.

use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex};
use std::time::{Instant, SystemTime};

use proptest::prelude::*;

use super::account::KnownUse;
use super::*;
use crate::admission::budgets::{BudgetUse, UtcWindows, WindowSums, end_of_day, end_of_month};
use crate::admission::limits::{Amounts, BudgetSums, BudgetWindow};
use crate::names::{ClientName, DeploymentName};
use crate::state::budget_log::{FILE_NAME, encode_entry, encode_header, read};

/// When the tests began: a midnight while they run does not matter.
fn now() -> SystemTime {
    static NOW: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);
    *NOW
}

fn scope(client: &str, deployment: Option<&str>) -> BudgetScope {
    BudgetScope {
        client: Some(ClientName::new(client)),
        deployment: deployment.map(|name| DeploymentName::parse(name).unwrap()),
    }
}

fn open(directory: &Path) -> Result<Arc<StateDirectory>, StateError> {
    StateDirectory::open(directory).map(Arc::new)
}

fn start(directory: &Path) -> BudgetBooks {
    let books = BudgetBooks::default();
    books.restore(&open(directory));
    books
}

fn used(books: &BudgetBooks, scope: &BudgetScope) -> (u64, u64) {
    tokens_of(&books.account(scope), now())
}

/// Booked, and not refunded.
fn booked(tokens: u64, cost_millionths: u64) -> BudgetSums {
    BudgetSums { booked: Amounts { tokens, cost_millionths }, ..BudgetSums::default() }
}

/// The tokens of the day and of the month.
fn tokens_of(account: &BudgetAccount, now: SystemTime) -> (u64, u64) {
    let tokens = |window| account.counted(window, now).booked.tokens;
    (tokens(BudgetWindow::Day), tokens(BudgetWindow::Month))
}

fn entry(client: &str, tokens: u64) -> BudgetEntry {
    let windows = UtcWindows::at(now());
    let sums = WindowSums { tokens, ..WindowSums::default() };
    let own = BudgetUse::of_both(sums, windows);
    scope(client, None).to_entry(KnownUse { own, others: BudgetUse::default() })
}

fn written(entries: &[BudgetEntry]) -> Vec<u8> {
    let mut text = Vec::new();
    encode_header(&mut text);
    entries.iter().for_each(|entry| encode_entry(entry, &mut text));
    text
}

/// The entries of the file; empty if there is none yet.
fn logged(directory: &Path) -> Vec<BudgetEntry> {
    let text = fs::read(directory.join(FILE_NAME)).unwrap_or_default();
    let mut entries = Vec::new();
    let _ = read(&mut text.as_slice(), |entry| entries.push(entry));
    entries
}

/// What the file says that was used in the day.
fn logged_tokens(directory: &Path, client: &str) -> Option<u64> {
    let entries = logged(directory);
    let last =
        entries.iter().rfind(|entry| entry.client.as_ref().is_some_and(|name| name.as_str() == client));
    last.map(|entry| entry.day_tokens)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Never reached: nobody serves.
fn nobody() -> BudgetReport {
    Box::new(|_| Err(std::io::ErrorKind::NotFound.into()))
}

/// Reaches these books once they are there.
fn to(successor: &Arc<Mutex<Option<BudgetBooks>>>) -> BudgetReport {
    let successor = Arc::clone(successor);
    Box::new(move |additions| {
        let successor = successor.lock().unwrap();
        successor.as_ref().ok_or(std::io::ErrorKind::NotFound)?.add_reported(additions);
        Ok(())
    })
}

#[test]
fn what_is_used_is_in_the_file_soon_and_known_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let books = start(directory.path());
    let nameless = BudgetScope { client: None, deployment: None };
    let scopes = [scope("a", None), scope("a", Some("gpt-4o")), nameless];
    for tokens in 1..=3 {
        scopes.iter().for_each(|scope| books.account(scope).add(Amounts::of_tokens(tokens), now()));
        let sum: u64 = (1..=tokens).sum();
        // Once the file has it, the thread sleeps until the next change.
        wait_until("it is in the file", || logged_tokens(directory.path(), "a") == Some(sum));
    }
    assert_eq!(books.save_problem(), None);
    // As a kill leaves it: the copy has only what is in the file by now.
    let copy = tempfile::tempdir().unwrap();
    wait_until("all of it is in the file", || {
        fs::copy(directory.path().join(FILE_NAME), copy.path().join(FILE_NAME)).unwrap();
        logged(copy.path()).iter().filter(|entry| entry.month_tokens == 6).count() == 3
    });
    let next = start(copy.path());
    let found = scopes.each_ref().map(|scope| used(&next, scope));
    assert_eq!(found, [(6, 6); 3]);
    assert_eq!(used(&next, &scope("a", Some("GPT-4O"))), (6, 6));
    assert_eq!(used(&next, &scope("b", None)), (0, 0));
}

#[test]
fn what_the_others_have_used_is_known_after_a_restart_and_is_nothing_that_this_instance_has_used() {
    let directory = tempfile::tempdir().unwrap();
    let books = start(directory.path());
    let (a, UtcWindows { day, month }) = (scope("a", None), UtcWindows::at(now()));
    let amounts = |tokens, cost_millionths| Amounts { tokens, cost_millionths };
    let of_others = |books: &BudgetBooks| {
        let account = books.account(&a);
        (account.others(BudgetWindow::Day, day), account.others(BudgetWindow::Month, month))
    };
    let own = |books: &BudgetBooks| {
        [BudgetWindow::Day, BudgetWindow::Month].map(|window| books.account(&a).counted(window, now()))
    };
    // Limits of tokens and of cost are reported one by one.
    books.account(&a).note_others(BudgetWindow::Day, day, booked(30, 0));
    books.account(&a).note_others(BudgetWindow::Month, month, booked(40, 0));
    books.account(&a).note_others(BudgetWindow::Day, day, booked(0, 700));
    books.account(&a).note_others(BudgetWindow::Month, month, booked(0, 800));
    books.account(&a).add(amounts(5, 50), now());
    books.account(&a).note_others(BudgetWindow::Day, day, booked(20, 600));
    let known = (booked(30, 700), booked(40, 800));
    assert_eq!((of_others(&books), own(&books)), (known, [booked(5, 50); 2]));
    books.close();
    drop(books);
    let next = start(directory.path());
    assert_eq!((of_others(&next), own(&next)), (known, [booked(5, 50); 2]));
    assert_eq!(next.account(&a).others(BudgetWindow::Day, day + 1), BudgetSums::default());
    // A successor gets it with the file, and is told only what this one has used.
    let successor = Arc::new(Mutex::new(None));
    next.release_directory(to(&successor));
    next.account(&a).add(amounts(2, 20), now());
    next.account(&a).note_others(BudgetWindow::Day, day, booked(90, 900));
    *successor.lock().unwrap() = Some(start(directory.path()));
    next.close();
    let successor = successor.lock().unwrap();
    let successor = successor.as_ref().unwrap();
    assert_eq!((of_others(successor), own(successor)), (known, [booked(7, 70); 2]));
}

#[test]
fn a_correction_counts_in_the_day_and_month_of_its_booking_and_outlives_all_that_bookings_do() {
    let directory = tempfile::tempdir().unwrap();
    let books = start(directory.path());
    let (a, UtcWindows { day, month }) = (scope("a", None), UtcWindows::at(now()));
    let amounts = |tokens, cost_millionths| Amounts { tokens, cost_millionths };
    let counted = |books: &BudgetBooks| {
        let used = |window| books.account(&a).counted(window, now());
        (used(BudgetWindow::Day), used(BudgetWindow::Month))
    };
    let correct = |books: &BudgetBooks, windows, booked, refunded| {
        books.account(&a).correct(windows, BudgetSums { booked, refunded });
    };
    books.account(&a).add(amounts(100, 100), now());
    correct(&books, UtcWindows { day, month }, amounts(0, 7), amounts(40, 0));
    let sums = |booked, refunded| BudgetSums { booked, refunded };
    let once = sums(amounts(100, 107), amounts(40, 0));
    assert_eq!(counted(&books), (once, once));
    // Of yesterday, and of the month before.
    correct(&books, UtcWindows { day: day - 1, month }, amounts(0, 0), amounts(9, 9));
    correct(&books, UtcWindows { day: day - 40, month: month - 1 }, amounts(1, 1), amounts(1, 1));
    let twice = sums(amounts(100, 107), amounts(49, 9));
    assert_eq!(counted(&books), (once, twice));
    books.close();
    drop(books);
    let next = start(directory.path());
    assert_eq!(counted(&next), (once, twice));
    // A successor gets it with the file, and a report of what comes afterwards.
    let successor = Arc::new(Mutex::new(None));
    next.release_directory(to(&successor));
    correct(&next, UtcWindows { day, month }, amounts(0, 0), amounts(1, 0));
    *successor.lock().unwrap() = Some(start(directory.path()));
    next.close();
    let successor = successor.lock().unwrap();
    let (in_day, in_month) = counted(successor.as_ref().unwrap());
    assert_eq!((in_day.refunded, in_month.refunded), (amounts(41, 0), amounts(50, 9)));
    assert_eq!((in_day.booked, in_month.booked), (once.booked, once.booked));
}

#[test]
fn what_is_given_up_is_not_in_the_file_and_other_units_keep_their_sums() {
    let directory = tempfile::tempdir().unwrap();
    let books = start(directory.path());
    let a = scope("a", None);
    let amounts = |tokens, cost_millionths| Amounts { tokens, cost_millionths };
    books.account(&a).add(amounts(5, 50), now());
    books.account(&a).give_up(BudgetWindow::Day, booked(0, 40), now());
    books.account(&a).give_up(BudgetWindow::Month, booked(3, 0), now());
    books.close();
    drop(books);
    let next = start(directory.path());
    let used = |window| next.account(&a).counted(window, now());
    assert_eq!((used(BudgetWindow::Day), used(BudgetWindow::Month)), (booked(5, 10), booked(2, 50)));
}

#[test]
fn what_is_used_last_is_in_the_file_when_the_process_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let a = scope("a", None);
    for round in 0..4 {
        let books = start(directory.path());
        assert_eq!(used(&books, &a), (round, round));
        books.account(&a).add(Amounts::of_tokens(1), now());
        books.close();
        // Nobody counts this any longer, and it does no harm.
        books.account(&a).add(Amounts::of_tokens(1), now());
    }
    assert_eq!(logged_tokens(directory.path(), "a"), Some(4));
}

#[test]
fn a_day_and_a_month_that_have_passed_are_not_restored() {
    let (now, tomorrow, next_month) = (now(), end_of_day(now()), end_of_month(now()));
    let books = BudgetBooks::default();
    let account = books.account(&scope("a", None));
    account.add(Amounts::of_tokens(5), now);
    assert_eq!((tokens_of(&account, now), tokens_of(&account, next_month)), ((5, 5), (0, 0)));
    let is_last_day = UtcWindows::at(tomorrow).month != UtcWindows::at(now).month;
    assert_eq!(tokens_of(&account, tomorrow), (0, if is_last_day { 0 } else { 5 }));
    let directory = tempfile::tempdir().unwrap();
    let UtcWindows { day, month } = UtcWindows::at(now);
    let entries = [
        BudgetEntry { day: day - 1, month_tokens: 9, ..entry("yesterday", 7) },
        BudgetEntry { day: day - 40, month: month - 1, ..entry("last month", 7) },
    ];
    fs::write(directory.path().join(FILE_NAME), written(&entries)).unwrap();
    let books = start(directory.path());
    assert_eq!(used(&books, &scope("yesterday", None)), (0, 9));
    let last_month = books.account(&scope("last month", None));
    assert_eq!(tokens_of(&last_month, now), (0, 0));
    books.close();
    // What no longer counts is not written again.
    assert_eq!(logged(directory.path()), entries[..1]);
}

#[test]
fn a_file_that_was_cut_or_damaged_keeps_its_other_lines_and_is_continued() {
    let header = written(&[]).len();
    let whole = written(&[entry("a", 1), entry("b", 2), entry("a", 3)]);
    let ends: Vec<_> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    for cut in (0..=whole.len()).step_by(7).chain(ends.iter().copied()).chain([whole.len()]) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE_NAME), &whole[..cut]).unwrap();
        let books = start(directory.path());
        // A line whose line feed alone is missing is whole.
        let lines = ends[1..].iter().filter(|end| cut >= **end).count();
        let expected = [(0, 0), (1, 0), (1, 2), (3, 2)][lines];
        let found = (used(&books, &scope("a", None)).0, used(&books, &scope("b", None)).0);
        assert_eq!(found, expected, "cut at {cut}");
        books.account(&scope("c", None)).add(Amounts::of_tokens(9), now());
        books.close();
        let next = start(directory.path());
        let found = ["a", "b", "c"].map(|client| used(&next, &scope(client, None)).0);
        assert_eq!(found, [expected.0, expected.1, 9], "cut at {cut}");
        next.close();
        let aside = fs::read_dir(directory.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("budgets.log.unusable-")
        });
        // A header whose line feed alone is missing is whole, too.
        assert_eq!(aside.count(), usize::from(cut < header - 1), "cut at {cut}");
    }
    let mut damaged = whole.clone();
    damaged[ends[1] + 3] = 0xff;
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(FILE_NAME), &damaged).unwrap();
    let books = start(directory.path());
    assert_eq!((used(&books, &scope("a", None)).0, used(&books, &scope("b", None)).0), (3, 0));
    wait_until("it is written anew", || logged(directory.path()) == [entry("a", 3)]);
}

#[test]
fn a_file_of_mostly_outdated_lines_is_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = BudgetFile::open(open(directory.path()).unwrap(), BookSubject::Budgets).0;
    file.rewrite(&[entry("a", 1)]).unwrap();
    // The table: lines in the file, accounts, and whether it has to be written anew.
    let mut lines = 1;
    for (wanted, accounts, expected) in
        [(4096, 1, false), (4097, 3000, false), (4097, 2048, true), (5000, 2500, false), (5001, 2500, true)]
    {
        file.append(&vec![entry("a", 2); wanted - lines]).unwrap();
        lines = wanted;
        assert_eq!(file.needs_rewrite(accounts), expected, "{wanted} lines, {accounts} accounts");
    }
    assert_eq!(logged(directory.path()).len(), lines);
    file.rewrite(&[entry("a", 3)]).unwrap();
    assert!(!file.needs_rewrite(1));
    assert_eq!(logged(directory.path()), [entry("a", 3)]);
    drop(file);
    fs::write(directory.path().join(FILE_NAME), written(&vec![entry("a", 4); 5000])).unwrap();
    let books = start(directory.path());
    wait_until("it is short", || logged(directory.path()) == [entry("a", 4)]);
    assert!(!directory.path().join("budgets.log.new").exists());
    books.close();
}

#[test]
fn a_file_that_cannot_be_appended_to_is_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = BudgetFile::open(open(directory.path()).unwrap(), BookSubject::Budgets).0;
    assert!(file.needs_rewrite(1) && !file.is_inherited());
    file.rewrite(&[entry("a", 1)]).unwrap();
    file.replace_with(fs::OpenOptions::new().append(true).open("/dev/full").unwrap());
    assert!(file.append(&[entry("a", 2)]).is_err());
    assert!(file.needs_rewrite(1) && file.append(&[entry("a", 2)]).is_err());
    file.rewrite(&[entry("a", 2)]).unwrap();
    file.append(&[entry("a", 3)]).and_then(|()| file.sync()).unwrap();
    assert_eq!(logged(directory.path()), [entry("a", 2), entry("a", 3)]);
}

#[test]
fn while_the_disk_fails_requests_go_on_and_all_of_it_is_saved_later() {
    let directory = tempfile::tempdir().unwrap();
    let books = start(directory.path());
    let account = books.account(&scope("a", None));
    // What a new file is made in is taken by a directory.
    let obstacle = directory.path().join("budgets.log.new");
    fs::create_dir(&obstacle).unwrap();
    account.add(Amounts::of_tokens(1), now());
    wait_until("the problem is known", || books.save_problem().is_some());
    assert!(books.save_problem().unwrap().starts_with("cannot write budgets.log: "));
    account.add(Amounts::of_tokens(2), now());
    assert_eq!(tokens_of(&account, now()), (3, 3));
    fs::remove_dir(&obstacle).unwrap();
    wait_until("it is saved", || logged_tokens(directory.path(), "a") == Some(3));
    wait_until("the problem is over", || books.save_problem().is_none());
    account.add(Amounts::of_tokens(3), now());
    wait_until("it is appended", || logged_tokens(directory.path(), "a") == Some(6));
}

#[test]
fn without_a_directory_budgets_are_counted_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let owner = open(directory.path()).unwrap();
    let books = start(directory.path());
    assert!(books.save_problem().unwrap().contains("each instance needs a directory of its own"));
    books.account(&scope("a", None)).add(Amounts::of_tokens(1), now());
    assert_eq!(used(&books, &scope("a", None)), (1, 1));
    books.close();
    assert!(!directory.path().join(FILE_NAME).exists());
    drop(owner);
    // Without budgets there is no file.
    start(directory.path()).close();
    assert!(!directory.path().join(FILE_NAME).exists());
}

#[test]
fn a_successor_reads_all_that_was_used_and_is_told_what_its_predecessor_finishes() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (scope("a", None), scope("b", Some("gpt-4o")));
    let predecessor = start(directory.path());
    predecessor.account(&a).add(Amounts::of_tokens(10), now());
    wait_until("it is in the file", || logged_tokens(directory.path(), "a") == Some(10));
    // Not in the file yet.
    predecessor.account(&a).add(Amounts::of_tokens(5), now());
    let successor = Arc::default();
    predecessor.release_directory(to(&successor));
    assert_eq!(logged_tokens(directory.path(), "a"), Some(15));
    // Before the successor serves.
    predecessor.account(&a).add(Amounts::of_tokens(100), now());
    predecessor.account(&b).add(Amounts::of_tokens(200), now());
    let books = start(directory.path());
    assert_eq!((books.save_problem(), used(&books, &a), used(&books, &b)), (None, (15, 15), (0, 0)));
    books.account(&a).add(Amounts::of_tokens(1), now());
    *successor.lock().unwrap() = Some(books);
    let found = |scope| used(successor.lock().unwrap().as_ref().unwrap(), scope);
    wait_until("all of it is told", || (found(&a), found(&b)) == ((116, 116), (200, 200)));
    predecessor.account(&b).add(Amounts::of_tokens(1000), now());
    wait_until("more of it is told", || found(&b) == (1200, 1200));
    predecessor.account(&b).add(Amounts::of_tokens(5000), now());
    predecessor.close();
    assert_eq!((found(&a), found(&b)), ((116, 116), (6200, 6200)));
    successor.lock().unwrap().take().unwrap().close();
    let next = start(directory.path());
    assert_eq!((used(&next, &a), used(&next, &b)), ((116, 116), (6200, 6200)));
}

#[test]
fn a_predecessor_without_a_directory_tells_its_successor_all_that_was_used() {
    let (a, predecessor) = (scope("a", None), BudgetBooks::default());
    predecessor.account(&a).add(Amounts::of_tokens(7), now());
    let successor = Arc::new(Mutex::new(Some(BudgetBooks::default())));
    predecessor.release_directory(to(&successor));
    predecessor.account(&a).add(Amounts::of_tokens(1), now());
    predecessor.close();
    assert_eq!(used(successor.lock().unwrap().as_ref().unwrap(), &a), (8, 8));
}

#[test]
fn what_a_disk_that_fails_does_not_take_is_told_to_the_successor() {
    let directory = tempfile::tempdir().unwrap();
    let a = scope("a", None);
    let predecessor = start(directory.path());
    fs::create_dir(directory.path().join("budgets.log.new")).unwrap();
    predecessor.account(&a).add(Amounts::of_tokens(3), now());
    let successor = Arc::new(Mutex::new(Some(BudgetBooks::default())));
    predecessor.release_directory(to(&successor));
    let found = || used(successor.lock().unwrap().as_ref().unwrap(), &a);
    wait_until("it is told", || found() == (3, 3));
    predecessor.account(&a).add(Amounts::of_tokens(1), now());
    predecessor.close();
    assert_eq!(found(), (4, 4));
}

#[test]
fn what_a_successor_that_is_gone_was_not_told_is_added_to_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let a = scope("a", None);
    for is_owned in [false, true] {
        let predecessor = start(directory.path());
        let before = used(&predecessor, &a).0;
        predecessor.account(&a).add(Amounts::of_tokens(1), now());
        predecessor.release_directory(nobody());
        let successor = start(directory.path());
        successor.account(&a).add(Amounts::of_tokens(10), now());
        successor.close();
        let owner = is_owned.then(|| open(directory.path()).unwrap());
        predecessor.account(&a).add(Amounts::of_tokens(100), now());
        predecessor.close();
        // The file of another process is left alone.
        let expected = before + if is_owned { 11 } else { 111 };
        assert_eq!(logged_tokens(directory.path(), "a"), Some(expected), "{is_owned}");
        drop(owner);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn what_all_processes_used_in_the_month_is_what_the_last_one_knows(
        rounds in proptest::collection::vec((0_u64..1000, 0_u64..1000, 0_u64..1000), 1..6),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let (a, now) = (scope("a", None), now());
        let mut sum = 0;
        let mut current = start(directory.path());
        for (before, while_released, afterwards) in rounds {
            sum += before + while_released + afterwards;
            current.account(&a).add(Amounts::of_tokens(before), now);
            let successor = Arc::default();
            current.release_directory(to(&successor));
            current.account(&a).add(Amounts::of_tokens(while_released), now);
            *successor.lock().unwrap() = Some(start(directory.path()));
            current.account(&a).add(Amounts::of_tokens(afterwards), now);
            current.close();
            current = successor.lock().unwrap().take().unwrap();
            prop_assert_eq!(tokens_of(&current.account(&a), now), (sum, sum));
        }
        current.close();
        prop_assert_eq!(tokens_of(&start(directory.path()).account(&a), now), (sum, sum));
    }
}
