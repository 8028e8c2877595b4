//! A deployment that somebody else has started: its cluster file says which nodes there are, and those of them that run on this
//! machine are found among the processes, by the configuration that they were started with.

use rustix::process::Pid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tetrachord::config::NodeConfig;
use tetrachord::ring::NodeId;

/// Processes of this machine that are nodes of the cluster which speaks this protocol, as far as their files can be read.
pub(super) fn find(protocol: &str) -> BTreeMap<NodeId, Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some((node_of(&entry.path(), protocol)?, pid))
    });
    processes.collect()
}

fn node_of(process: &Path, protocol: &str) -> Option<NodeId> {
    let command = std::fs::read(process.join("cmdline")).ok()?;
    let file = config_of(&command)?;
    let directory = std::fs::read_link(process.join("cwd")).ok()?;
    let config = NodeConfig::load(&directory.join(file)).ok()?;
    (config.genesis.protocol_name() == protocol).then_some(config.node)
}

/// The file in `... serve --config FILE`, if the command is that.
fn config_of(command: &[u8]) -> Option<PathBuf> {
    let words: Vec<String> =
        command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let serve = words.iter().position(|word| word == "serve")?;
    let rest = &words[serve + 1..];
    let by_word = rest.iter().position(|word| word == "--config").and_then(|at| rest.get(at + 1)).cloned();
    let by_sign = || rest.iter().find_map(|word| word.strip_prefix("--config=").map(ToString::to_string));
    by_word.or_else(by_sign).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_told_from_other_processes() {
        let file = |command: &[u8]| config_of(command).map(|path| path.display().to_string());
        assert_eq!(
            file(b"tetrachord\0serve\0--config\0c/n1/node.toml\0"),
            Some("c/n1/node.toml".to_string())
        );
        assert_eq!(file(b"/bin/tetrachord\0serve\0--config=a b\0"), Some("a b".to_string()));
        assert_eq!(file(b"tetrachord\0status\0"), None);
        assert_eq!(file(b"tetrachord\0serve\0--config"), None);
        assert_eq!(file(b""), None);
    }
}
