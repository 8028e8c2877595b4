//! `tetrachord-jepsen list`: the registers.

use super::say;
use super::test::ALIASES;
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::workload::Workload;
use tetrachord_jepsen::world::Kind;

pub(crate) fn run() {
    say!("workloads");
    for workload in Workload::ALL {
        say!("  {:<16} {}", workload.name(), workload.about());
    }
    say!("nemeses          worlds    what they do");
    for nemesis in Nemesis::ALL {
        let has = |world, name| if nemesis.effect(world).is_some() { name } else { "" };
        let (sim, real) = (has(Kind::Sim, "sim"), has(Kind::Real, "real"));
        say!("  {:<16} {sim:<3} {real:<4}  {}", nemesis.name(), nemesis.about());
    }
    say!("several at once, in `test --nemesis`");
    for (name, members, _) in ALIASES {
        say!("  {name:<16} {members}");
    }
}
