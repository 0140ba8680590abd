//! The time that each step of a request takes on this machine: `cargo bench --bench functions`.

#![allow(missing_docs, reason = "a benchmark without a public API")]

mod hot_path;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, mut step) in hot_path::steps() {
        criterion.bench_function(name, |bencher| bencher.iter(&mut step));
    }
    criterion.final_summary();
}
