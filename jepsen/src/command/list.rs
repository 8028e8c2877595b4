//! `tetrachord-jepsen list`: the registers.

use super::test::ALIASES;
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::workload::Workload;
use tetrachord_jepsen::world::Kind;

pub(crate) fn run() {
    println!("workloads");
    for workload in Workload::ALL {
        println!("  {:<16} {}", workload.name(), workload.about());
    }
    println!("nemeses          worlds    what they do");
    for nemesis in Nemesis::ALL {
        let has = |world, name| if nemesis.effect(world).is_some() { name } else { "" };
        let (sim, real) = (has(Kind::Sim, "sim"), has(Kind::Real, "real"));
        println!("  {:<16} {sim:<3} {real:<4}  {}", nemesis.name(), nemesis.about());
    }
    println!("several at once, in `test --nemesis`");
    for (name, members, _) in ALIASES {
        println!("  {name:<16} {members}");
    }
}
