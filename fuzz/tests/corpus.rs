//! Every input that is kept does what its target promises.

use std::path::Path;

#[test]
fn every_input_of_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut targets = 0;
    for directory in std::fs::read_dir(corpus).expect("a corpus") {
        let directory = directory.expect("an entry").path();
        let name = directory.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let target = shika_fuzz::target(&name).expect("a target for each directory");
        let mut inputs = 0;
        for input in std::fs::read_dir(&directory).expect("a directory") {
            let path = input.expect("an entry").path();
            let data = std::fs::read(&path).expect("an input");
            assert!(std::panic::catch_unwind(|| target(&data)).is_ok(), "{}", path.display());
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no inputs");
        targets += 1;
    }
    assert_eq!(targets, 8);
}
