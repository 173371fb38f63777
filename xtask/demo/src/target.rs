//! The target process: a decode node that holds the KV pool. It takes no part in reads and writes; it checks what has arrived.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use engine::{Access, Engine, HostMemory, Segment};

use crate::message::{Checked, POOL, Report, Written, page_seed};
use crate::pattern::first_difference;
use crate::spec::Spec;

/// How long the target waits for anything at all before it gives the initiator up.
const SILENCE: Duration = Duration::from_secs(60);

/// Serves one initiator until it says that it has finished.
pub(crate) fn run(spec: &Spec) -> anyhow::Result<()> {
    let engine = spec.transport.builder().build()?;
    let pool = HostMemory::new(spec.pool_bytes)?;
    let _region = engine.register(POOL, pool.clone(), Access::READ_WRITE)?;
    Report::Listening { name: engine.name().to_owned() }.print();

    let mut initiator: Option<Segment> = None;
    let mut page = Vec::new();
    loop {
        let Some(note) = engine.notification(Instant::now() + SILENCE) else {
            bail!("no word from an initiator for {} s", SILENCE.as_secs());
        };
        let written: Written =
            postcard::from_bytes(&note.payload).context("a notification that is not of the demo")?;
        if written.writes.is_empty() {
            engine.shutdown(spec.deadline_from_now());
            return Ok(());
        }
        let answer = check(&written, &pool, &mut page)?;
        let initiator = match &initiator {
            Some(segment) => segment,
            None => initiator.insert(open(&engine, &note.from, spec)?),
        };
        initiator.notify(&postcard::to_stdvec(&answer)?, spec.deadline_from_now())?;
    }
}

fn open(engine: &Engine, name: &str, spec: &Spec) -> anyhow::Result<Segment> {
    engine.open(name, spec.deadline_from_now()).with_context(|| format!("opening the initiator {name}"))
}

fn check(written: &Written, pool: &HostMemory, page: &mut Vec<u8>) -> anyhow::Result<Checked> {
    let mut checked = Checked::default();
    for write in &written.writes {
        page.resize(write.page_bytes, 0);
        let mut wrong = None;
        for (index, &id) in write.pages.iter().enumerate() {
            pool.read(id as usize * write.page_bytes, page)?;
            if let Some(at) = first_difference(page, page_seed(write.seed, index)) {
                wrong = Some(format!("write {}: page {id} of the pool is wrong from byte {at} on", write.id));
            }
        }
        match wrong {
            None => checked.right.push(write.id),
            Some(_) => checked.wrong = wrong,
        }
    }
    Ok(checked)
}
