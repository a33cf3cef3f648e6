//! The time that each of [`shika_benches::inner`]'s operations takes.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};

fn inner(c: &mut Criterion) {
    let Ok(directory) = tempfile::tempdir() else { return };
    if let Err(error) = shika_benches::configuration::write_certificates(directory.path()) {
        eprintln!("certificates: {error:#}");
        return;
    }
    for scenario in shika_benches::inner::SCENARIOS {
        match (scenario.prepare)(directory.path()) {
            Ok(mut operation) => {
                c.bench_function(scenario.name, |bencher| bencher.iter(&mut operation));
            }
            Err(error) => eprintln!("{}: {error:#}", scenario.name),
        }
    }
}

criterion_group!(all, inner);
criterion_main!(all);
