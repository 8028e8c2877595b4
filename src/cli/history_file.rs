//! A history on disk while it is recorded. After every write the file holds a history that can be judged: what was answered, and behind
//! it whatever was open at that moment, as operations of which nobody knows the outcome. The next write replaces those.

use super::usage;
use anyhow::Context;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tetrachord_checker::Operation;

/// How every recorded history begins.
const HEAD: [u8; 11] = *b"# recorded ";

/// The file, open.
#[derive(Debug)]
pub(crate) struct HistoryFile {
    file: File,
    path: PathBuf,
    /// A pipe takes no line back: what is open is written at the end only.
    is_regular: bool,
    /// Where the next answered operations go.
    end: u64,
    /// What stands behind that.
    open: String,
}

impl HistoryFile {
    /// Opens it, and replaces what was there, if that is a history too.
    pub(crate) fn create(path: &Path, remark: &str) -> anyhow::Result<Self> {
        if !may_replace(path) {
            return Err(usage(format!(
                "{} is there already, and is no recorded history. Name another file, or remove this one",
                path.display()
            )));
        }
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Self::begin(file, path, remark)
    }

    /// Opens one that was not there.
    pub(crate) fn create_new(path: &Path, remark: &str) -> anyhow::Result<Self> {
        let file = File::create_new(path).with_context(|| format!("cannot write {}", path.display()))?;
        Self::begin(file, path, remark)
    }

    fn begin(file: File, path: &Path, remark: &str) -> anyhow::Result<Self> {
        let is_regular = file.metadata().is_ok_and(|file| file.is_file());
        let (path, open) = (path.to_path_buf(), String::new());
        let mut history = Self { file, path, is_regular, end: 0, open };
        history.put(&format!("# {remark}\n"), "")?;
        Ok(history)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.is_regular
    }

    /// Adds what was answered, or was given up, since the last time. `open` is all that is open now.
    pub(crate) fn add(&mut self, operations: &[Operation], open: &[Operation]) -> anyhow::Result<()> {
        let open = if self.is_regular { lines(open) } else { String::new() };
        self.put(&lines(operations), &open)
    }

    /// Ends the history: what is still open is given up.
    pub(crate) fn finish(
        mut self,
        operations: &[Operation],
        open: &[Operation],
        remark: &str,
    ) -> anyhow::Result<()> {
        self.put(&(lines(operations) + &lines(open) + &format!("# {remark}\n")), "")
    }

    fn put(&mut self, text: &str, open: &str) -> anyhow::Result<()> {
        if let Err(error) = self.replace(text, open) {
            // What was there before is a history still, if the disk takes it back.
            let before = std::mem::take(&mut self.open);
            let is_back = self.is_regular && self.replace("", &before).is_ok();
            let state =
                if is_back { "what it holds is a history up to there" } else { "it is not to be relied on" };
            return Err(error).with_context(|| format!("cannot write {}; {state}", self.path.display()));
        }
        Ok(())
    }

    fn replace(&mut self, text: &str, open: &str) -> std::io::Result<()> {
        if self.is_regular {
            self.file.seek(SeekFrom::Start(self.end))?;
        }
        self.file.write_all(&[text, open].concat().into_bytes())?;
        if self.is_regular {
            self.file.set_len(self.end + (text.len() + open.len()) as u64)?;
        }
        self.end += text.len() as u64;
        open.clone_into(&mut self.open);
        Ok(())
    }
}

fn lines(operations: &[Operation]) -> String {
    operations.iter().map(|operation| operation.to_json() + "\n").collect()
}

/// Whether nobody loses anything if this file is written anew: it is not there, is empty, is a history that was recorded, or is no file at
/// all but a pipe.
fn may_replace(path: &Path) -> bool {
    // A pipe must not be opened to look at it: that waits for whoever writes to it.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => {
            let mut head = [0; HEAD.len()];
            File::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok()) && head == HEAD
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tetrachord_checker::{Action, History, Limits, Verdict, check};

    fn operation(process: u64, action: Action, call: u64, end: Option<u64>) -> Operation {
        Operation { process, key: "x".to_string(), action, call, end, line: 0 }
    }

    /// Whoever reads the file at any moment reads a history, and one that accuses nobody: a read of what an open put wrote has its put.
    #[test]
    fn the_file_is_a_history_after_every_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.jsonl");
        let judged = |count: usize, unknown: usize| {
            let history = History::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!((history.operations().len(), history.unknown()), (count, unknown));
            assert_eq!(check(&history, Limits::default()).verdict, Verdict::Linearizable);
        };
        let mut file = HistoryFile::create(&path, "a test").unwrap();
        judged(0, 0);
        let put = operation(1, Action::Put("a long value, so that the line is long".into()), 1, None);
        let get = |call| {
            operation(
                2,
                Action::Get(Some("a long value, so that the line is long".into())),
                call,
                Some(call + 1),
            )
        };
        file.add(&[get(2)], std::slice::from_ref(&put)).unwrap();
        judged(2, 1);
        file.add(&[get(4)], &[put.clone(), operation(2, Action::Delete, 6, None)]).unwrap();
        judged(4, 2);
        file.add(&[operation(2, Action::Delete, 6, Some(7)), Operation { end: Some(5), ..put }], &[])
            .unwrap();
        judged(4, 0);
        file.finish(&[], &[operation(2, Action::Delete, 9, None)], "that was all").unwrap();
        judged(5, 1);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("}\n# that was all\n"));
        assert!(HistoryFile::create_new(&path, "it is there").is_err());
    }

    #[test]
    fn a_full_disk_is_said_and_leaves_no_half_line() {
        let file = HistoryFile::create(Path::new("/dev/full"), "a test");
        let words = format!("{:#}", file.unwrap_err());
        assert!(words.contains("cannot write /dev/full") && words.contains("No space"), "{words}");
    }
}
