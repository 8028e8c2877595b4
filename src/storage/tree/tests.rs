//! The tree against a plain map, before, while and after it is packed; and what packing is for.

use super::pack::Packing;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const STORE: StoreId = StoreId([7; 16]);
const CACHE: u64 = 4 << 20;

fn key(number: u16) -> Bytes {
    Bytes::from(format!("k{number:05}"))
}

fn value(number: u16, version: usize) -> Bytes {
    Bytes::from(format!("{version} ").repeat(1 + usize::from(number) % 90))
}

/// Writes of one job: which keys, and whether they are removed.
fn job(number: u64, writes: &[(u16, bool)]) -> Job {
    let version = usize::try_from(number).unwrap();
    let writes = writes.iter().map(|(at, is_removed)| (key(*at), (!is_removed).then(|| value(*at, version))));
    Job { number, writes: writes.collect() }
}

/// What the tree should hold.
#[derive(Default)]
struct Model(BTreeMap<Bytes, Bytes>);

impl Model {
    fn take(&mut self, job: &Job) {
        for (key, value) in &job.writes {
            match value {
                Some(value) => drop(self.0.insert(key.clone(), value.clone())),
                None => drop(self.0.remove(key)),
            }
        }
    }

    fn agrees_with(&self, tree: &Tree) {
        for number in 0..400 {
            assert_eq!(tree.get(&key(number)).unwrap().as_ref(), self.0.get(&key(number)), "key {number}");
        }
        for (from, to) in [(0, 400), (3, 3), (17, 230), (100, 101), (399, 500)] {
            let (from, to) = (key(from), key(to));
            let expected: Vec<Row> = self
                .0
                .range(from.clone()..to.clone())
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            assert_eq!(tree.scan(&from, &to, usize::MAX).unwrap(), expected);
            // The same in pieces, each beginning behind the last row of the one before.
            let (mut at, mut rows) = (from.to_vec(), Vec::new());
            while let Some(last) = {
                rows.extend(tree.scan(&at, &to, 700).unwrap());
                rows.last().filter(|(last, _)| **last >= *at).cloned()
            } {
                at = [last.0.as_ref(), &[0]].concat();
            }
            assert_eq!(rows, expected);
        }
    }
}

/// Jobs before, while and after the tree is packed, packed again at the end.
fn run(jobs: &[Vec<(u16, bool)>]) {
    let dir = tempfile::tempdir().unwrap();
    let place = |number: usize| {
        let path = dir.path().join(number.to_string());
        std::fs::create_dir(&path).unwrap();
        path
    };
    let mut tree = Tree::open(&place(0), CACHE).unwrap();
    let mut model = Model::default();
    for round in 0..3 {
        let mut packing: Option<Packing> = None;
        let begin = round * jobs.len() / 3;
        for (index, writes) in jobs[begin..(round + 1) * jobs.len() / 3].iter().enumerate() {
            let job = job((begin + index + 1) as u64, writes);
            tree.carry_out(STORE, &job).unwrap();
            model.take(&job);
            if let Some(packing) = &mut packing {
                packing.follow(&job.writes).unwrap();
                packing.step(&tree).unwrap();
            } else if index == 2 {
                packing = Some(Packing::begin_small(&place(round + 1), CACHE));
            }
            model.agrees_with(&tree);
        }
        let Some(mut packing) = packing else { continue };
        while packing.step(&tree).unwrap() {}
        let last = ((round + 1) * jobs.len() / 3) as u64;
        (tree, _) = packing.finish(STORE, last).unwrap();
        assert_eq!(tree.mark(STORE).unwrap(), Mark::Complete(last));
        model.agrees_with(&tree);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_holds_the_same_before_while_and_after_it_is_packed(
        jobs in prop::collection::vec(prop::collection::vec((0u16..400, prop::bool::weighted(0.3)), 1..60), 9..30)
    ) {
        run(&jobs);
    }
}

#[test]
fn a_packed_tree_is_little_larger_than_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::create_dir(&to).unwrap();
    let tree = Tree::open(&from, CACHE).unwrap();
    let mut live = 0;
    for number in 1..=6 {
        let writes: Vec<StateWrite> = (0..50_000u32)
            .map(|at| {
                let key = [b"d", &blake3::hash(&at.to_be_bytes()).as_bytes()[..20]].concat();
                (Bytes::from(key), Some(Bytes::from(vec![number as u8; 100])))
            })
            .collect();
        live = writes.iter().map(|(key, _)| key.len() + 100).sum::<usize>() as u64;
        tree.carry_out(STORE, &Job { number, writes }).unwrap();
    }
    let before = Barrier::open(&from).unwrap();
    before.sync(&tree).unwrap();
    let mut packing = Packing::begin(&to, CACHE).unwrap();
    while packing.step(&tree).unwrap() {}
    let (packed, after) = packing.finish(STORE, 6).unwrap();
    let all = |tree: &Tree| tree.scan(b"", MARK_KEY, usize::MAX).unwrap();
    assert!(all(&packed) == all(&tree), "the copy holds the same");
    let (before, after) = (before.file_bytes().unwrap(), after.file_bytes().unwrap());
    println!("{live} bytes of rows: {before} bytes before, {after} after");
    assert!(after < live * 3 / 2 && after < before / 2);
    drop(packed);
    assert!(all(&Tree::open(&to, CACHE).unwrap()) == all(&tree), "and still does when it is opened again");
}
