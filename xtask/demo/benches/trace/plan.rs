//! What a round transfers: the first prompts of a trace, cut to the size of a round.

use std::collections::HashMap;

use crate::spec::Spec;
use crate::trace::Trace;

/// Which way a block goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// To the decode node, which does not have it.
    Write,
    /// From the decode node, which has it already.
    Read,
}

/// The blocks of each prompt: which way, and in which place of the pool.
pub(crate) type Prompt = Vec<(Op, usize)>;

/// The prompts of one round, the same in every round.
pub(crate) fn plan(spec: &Spec) -> anyhow::Result<Vec<Prompt>> {
    let mut trace = match &spec.trace {
        Some(path) => Trace::open(path.as_ref())?,
        None => Trace::generated(1),
    };
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut prompts = Vec::new();
    let mut left = spec.blocks;
    while left > 0 {
        let blocks = trace.next_request().hash_ids;
        let prompt: Prompt = blocks
            .into_iter()
            .take(spec.blocks_per_prompt.min(left))
            .map(|id| match places.get(&id) {
                Some(place) => (Op::Read, *place),
                None => {
                    places.insert(id, places.len());
                    (Op::Write, places.len() - 1)
                }
            })
            .collect();
        left -= prompt.len();
        prompts.extend((!prompt.is_empty()).then_some(prompt));
    }
    Ok(prompts)
}
