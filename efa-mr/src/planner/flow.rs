//! How many pages of each strip each NIC holds: the transportation problem of the [planner](super).

use super::strip::Strip;
use crate::buffer::PageSize;
use crate::error::Error;
use crate::nic::Nic;
use crate::units;
use std::collections::VecDeque;

/// `x[g][j]`: pages of strip `g` on NIC `j`.
#[derive(Debug)]
pub(super) struct Shares {
    nics: usize,
    x: Vec<u64>,
}

impl Shares {
    /// The pages of one strip on each NIC.
    pub(super) fn of(&self, strip: usize) -> &[u64] {
        &self.x[strip * self.nics..(strip + 1) * self.nics]
    }
}

/// Solves the flow: coverage, then spread, then distance, then load.
pub(super) fn assign(strips: &[Strip], nics: &[Nic]) -> Result<Shares, Error> {
    let mut flow = Flow::new(strips, nics);
    // Coverage. Every copy that must be is placed before any copy that may be.
    for (strip, s) in strips.iter().enumerate() {
        let must = s.least.saturating_mul(s.pages);
        while flow.copies[strip] < must {
            if !flow.augment(&[strip], |_| must) {
                return Err(flow.shortage(strip));
            }
        }
    }
    // Further copies, the pages with the most bytes first.
    let mut by_value: Vec<usize> = (0..strips.len()).collect();
    by_value.sort_by_key(|&strip| (std::cmp::Reverse(strips[strip].bytes_per_page), strip));
    for class in by_value.chunk_by(|&a, &b| strips[a].bytes_per_page == strips[b].bytes_per_page) {
        while flow.augment(class, |strip| strips[strip].wanted.saturating_mul(strips[strip].pages)) {}
    }
    flow.balance();
    Ok(Shares { nics: nics.len(), x: flow.x })
}

struct Flow<'a> {
    strips: &'a [Strip],
    nics: &'a [Nic],
    /// `x[g * nics + j]`.
    x: Vec<u64>,
    /// Σ_j x[g][j].
    copies: Vec<u64>,
    /// What is left of each NIC's budget.
    left: Vec<u64>,
    /// Load of each NIC in seconds.
    load: Vec<f64>,
    /// Load of one page of a strip on a NIC, in the layout of `x`.
    page_load: Vec<f64>,
    search: Search,
}

/// A node of the residual graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    /// A strip with one copy to place.
    Strip(usize),
    /// A NIC that has been given one page more.
    Nic(usize),
}

/// Scratch of the shortest-path search; kept between searches to keep its allocations.
#[derive(Default)]
struct Search {
    cost: Vec<i64>,
    from: Vec<Option<Node>>,
    queued: Vec<bool>,
    queue: VecDeque<usize>,
}

const FAR: i64 = i64::MAX;

impl<'a> Flow<'a> {
    fn new(strips: &'a [Strip], nics: &'a [Nic]) -> Self {
        let page_load = strips
            .iter()
            .flat_map(|strip| {
                let bytes = strip.bytes as f64 / strip.pages as f64;
                nics.iter().map(move |nic| bytes * 8e-6 / f64::from(nic.link_mbps))
            })
            .collect();
        Self {
            strips,
            nics,
            x: vec![0; strips.len() * nics.len()],
            copies: vec![0; strips.len()],
            left: nics.iter().map(|nic| nic.pte_left).collect(),
            load: vec![0.0; nics.len()],
            page_load,
            search: Search::default(),
        }
    }

    fn at(&self, strip: usize, nic: usize) -> usize {
        strip * self.nics.len() + nic
    }

    /// The cost of one page of a strip on a NIC; `None` if it can take none (unreachable, or it holds all of them).
    fn arc(&self, strip: usize, nic: usize) -> Option<i64> {
        let weight = self.strips[strip].weights[nic]?;
        (self.x[self.at(strip, nic)] < self.strips[strip].pages)
            .then(|| i64::from(weight) * self.strips[strip].bytes_per_page as i64)
    }

    fn put(&mut self, strip: usize, nic: usize, pages: u64) {
        let at = self.at(strip, nic);
        self.x[at] += pages;
        self.left[nic] -= pages;
        self.load[nic] += pages as f64 * self.page_load[at];
    }

    fn take(&mut self, strip: usize, nic: usize, pages: u64) {
        let at = self.at(strip, nic);
        self.x[at] -= pages;
        self.left[nic] += pages;
        self.load[nic] -= pages as f64 * self.page_load[at];
    }

    /// Places copies of one of the strips (which are of equal value) on the cheapest path; false if none is left to
    /// place or nothing fits. `limit` is how many copies a strip may have in all.
    fn augment(&mut self, strips: &[usize], limit: impl Fn(usize) -> u64) -> bool {
        if self.left.iter().all(|left| *left == 0) {
            self.search.cost.clear(); // No search is needed to find nothing: all strips compete for all NICs.
            return false;
        }
        // Without moving anything else: the cheapest NIC with room. Nothing is cheaper than the cheapest NIC, and as all
        // is optimal so far, moving others out of the way never earns anything; so this is a shortest path.
        let mut best: Option<(i64, f64, usize, usize)> = None;
        let mut cheapest = FAR;
        for &strip in strips {
            if self.copies[strip] >= limit(strip) {
                continue;
            }
            for nic in 0..self.nics.len() {
                let Some(cost) = self.arc(strip, nic) else { continue };
                cheapest = cheapest.min(cost);
                let key = (cost, self.load[nic]);
                if self.left[nic] > 0 && best.is_none_or(|(c, l, ..)| key < (c, l)) {
                    best = Some((cost, self.load[nic], strip, nic));
                }
            }
        }
        match best {
            _ if cheapest == FAR => false,
            Some((cost, _, strip, nic)) if cost == cheapest => {
                let room = self.strips[strip].pages - self.x[self.at(strip, nic)];
                let pages = room.min(self.left[nic]).min(limit(strip) - self.copies[strip]);
                self.put(strip, nic, pages);
                self.copies[strip] += pages;
                true
            }
            _ => self.augment_by_moving(strips, limit),
        }
    }

    /// As [`augment`](Self::augment), over paths that move pages of other strips between NICs.
    fn augment_by_moving(&mut self, strips: &[usize], limit: impl Fn(usize) -> u64) -> bool {
        let sources = strips.iter().copied().filter(|&strip| self.copies[strip] < limit(strip));
        let sources: Vec<Node> = sources.map(Node::Strip).collect();
        self.shortest_paths(&sources);
        let ends = (0..self.nics.len())
            .filter(|&nic| self.left[nic] > 0 && self.search.cost[self.strips.len() + nic] < FAR);
        let key = |&nic: &usize| (self.search.cost[self.strips.len() + nic], self.load[nic]);
        let Some(end) = ends.min_by(|a, b| {
            let (a, b) = (key(a), key(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        }) else {
            return false;
        };
        let path = self.path_to(Node::Nic(end));
        let Some(&Node::Strip(source)) = path.first() else { return false };
        let mut pages = self.left[end].min(limit(source) - self.copies[source]);
        for step in path.windows(2) {
            pages = pages.min(match (step[0], step[1]) {
                (Node::Strip(strip), Node::Nic(nic)) => {
                    self.strips[strip].pages - self.x[self.at(strip, nic)]
                }
                (Node::Nic(nic), Node::Strip(strip)) => self.x[self.at(strip, nic)],
                _ => 0, // The graph has two sides.
            });
        }
        if pages == 0 {
            return false;
        }
        self.shift(&path, pages);
        self.copies[source] += pages;
        true
    }

    /// Moves pages along a path of the residual graph.
    fn shift(&mut self, path: &[Node], pages: u64) {
        // Take before put, so that a NIC in the middle of the path stays within its budget.
        for step in path.windows(2) {
            if let (Node::Nic(nic), Node::Strip(strip)) = (step[0], step[1]) {
                self.take(strip, nic, pages);
            }
        }
        for step in path.windows(2) {
            if let (Node::Strip(strip), Node::Nic(nic)) = (step[0], step[1]) {
                self.put(strip, nic, pages);
            }
        }
    }

    /// Cheapest costs from the sources over the residual graph (no negative cycles: the flow is optimal so far).
    fn shortest_paths(&mut self, sources: &[Node]) {
        let (strips, nics) = (self.strips.len(), self.nics.len());
        let id = |node: Node| match node {
            Node::Strip(strip) => strip,
            Node::Nic(nic) => strips + nic,
        };
        let mut search = std::mem::take(&mut self.search);
        search.cost.clear();
        search.cost.resize(strips + nics, FAR);
        search.from.clear();
        search.from.resize(strips + nics, None);
        search.queued.clear();
        search.queued.resize(strips + nics, false);
        search.queue.clear();
        for &source in sources {
            search.cost[id(source)] = 0;
            search.queued[id(source)] = true;
            search.queue.push_back(id(source));
        }
        while let Some(at) = search.queue.pop_front() {
            search.queued[at] = false;
            let so_far = search.cost[at];
            let mut relax = |to: Node, cost: i64, from: Node| {
                if so_far + cost < search.cost[id(to)] {
                    search.cost[id(to)] = so_far + cost;
                    search.from[id(to)] = Some(from);
                    if !search.queued[id(to)] {
                        search.queued[id(to)] = true;
                        search.queue.push_back(id(to));
                    }
                }
            };
            if at < strips {
                for nic in 0..nics {
                    if let Some(cost) = self.arc(at, nic) {
                        relax(Node::Nic(nic), cost, Node::Strip(at));
                    }
                }
            } else {
                let nic = at - strips;
                for strip in 0..strips {
                    if self.x[self.at(strip, nic)] > 0
                        && let Some(weight) = self.strips[strip].weights[nic]
                    {
                        let cost = i64::from(weight) * self.strips[strip].bytes_per_page as i64;
                        relax(Node::Strip(strip), -cost, Node::Nic(nic));
                    }
                }
            }
        }
        self.search = search;
    }

    fn path_to(&self, end: Node) -> Vec<Node> {
        let mut path = vec![end];
        let mut at = end;
        while let Some(from) = self.search.from[match at {
            Node::Strip(strip) => strip,
            Node::Nic(nic) => self.strips.len() + nic,
        }] {
            path.push(from);
            at = from;
        }
        path.reverse();
        path
    }

    /// Lowers the largest load while leaving copies and distances as they are.
    ///
    /// Moves pages off the fullest NIC along paths of cost zero until that helps no more. At the end no single page
    /// can be moved so that the largest load falls.
    fn balance(&mut self) {
        loop {
            let Some(from) = (0..self.nics.len()).max_by(|&a, &b| {
                self.load[a].total_cmp(&self.load[b]).then(b.cmp(&a)) // The lowest index among equals.
            }) else {
                return;
            };
            if !self.relieve(from) {
                return;
            }
        }
    }

    /// Moves some load off a NIC that carries the most; false if that is impossible.
    fn relieve(&mut self, from: usize) -> bool {
        let mut targets: Vec<usize> = (0..self.nics.len())
            .filter(|&nic| nic != from && self.left[nic] > 0 && self.load[nic] < self.load[from])
            .collect();
        targets.sort_by(|&a, &b| self.load[a].total_cmp(&self.load[b]).then(a.cmp(&b)));
        for &to in &targets {
            // Directly: a strip that is equally far from both. The one with the most pages to move keeps the cuts few.
            let strip = (0..self.strips.len())
                .filter(|&strip| self.strips[strip].weights[from] == self.strips[strip].weights[to])
                .filter(|&strip| self.strips[strip].weights[to].is_some())
                .max_by_key(|&strip| (self.movable(strip, from, to), std::cmp::Reverse(strip)));
            if let Some(strip) = strip
                && self.relieve_along(&[Node::Nic(from), Node::Strip(strip), Node::Nic(to)])
            {
                return true;
            }
        }
        if targets.is_empty() {
            return false;
        }
        // By way of other NICs and strips.
        self.shortest_paths(&[Node::Nic(from)]);
        let reachable = targets.into_iter().filter(|nic| self.search.cost[self.strips.len() + nic] == 0);
        let paths: Vec<Vec<Node>> = reachable.map(|nic| self.path_to(Node::Nic(nic))).collect();
        paths.iter().any(|path| self.relieve_along(path))
    }

    fn movable(&self, strip: usize, from: usize, to: usize) -> u64 {
        self.x[self.at(strip, from)].min(self.strips[strip].pages - self.x[self.at(strip, to)])
    }

    /// Moves as many pages along the path as evens out its ends, if that leaves every NIC on it below the largest load.
    fn relieve_along(&mut self, path: &[Node]) -> bool {
        let (Some(&Node::Nic(from)), Some(&Node::Nic(to))) = (path.first(), path.last()) else {
            return false;
        };
        let mut pages = self.left[to];
        // What one page along the path does to the load of each NIC on it.
        let mut changes: Vec<(usize, f64)> = Vec::with_capacity(path.len());
        for step in path.windows(2) {
            let (strip, nic, sign) = match (step[0], step[1]) {
                (Node::Nic(nic), Node::Strip(strip)) => {
                    pages = pages.min(self.x[self.at(strip, nic)]);
                    (strip, nic, -1.0)
                }
                (Node::Strip(strip), Node::Nic(nic)) => {
                    pages = pages.min(self.strips[strip].pages - self.x[self.at(strip, nic)]);
                    (strip, nic, 1.0)
                }
                _ => return false, // The graph has two sides.
            };
            let change = sign * self.page_load[self.at(strip, nic)];
            match changes.iter_mut().find(|(known, _)| *known == nic) {
                Some((_, sum)) => *sum += change,
                None => changes.push((nic, change)),
            }
        }
        let of =
            |nic: usize| changes.iter().find(|(known, _)| *known == nic).map_or(0.0, |(_, change)| *change);
        let even = (self.load[from] - self.load[to]) / (of(to) - of(from));
        if pages == 0 || !even.is_finite() || even <= 0.0 {
            return false;
        }
        let pages = pages.min((even as u64).max(1));
        // Demand a visible improvement, so that rounding cannot make this go round in circles.
        let below = self.load[from] * (1.0 - 1e-12);
        if changes.iter().any(|&(nic, change)| self.load[nic] + change * pages as f64 >= below) {
            return false;
        }
        self.shift(path, pages);
        true
    }

    /// Explains why a copy of a strip cannot be placed: the last search's reach is a set of strips that needs more than
    /// the NICs that it reaches have.
    fn shortage(&self, strip: usize) -> Error {
        let (strips, nics) = (self.strips.len(), self.nics.len());
        let reached = |node: usize| self.search.cost.get(node).is_none_or(|cost| *cost < FAR);
        let competing: Vec<&Strip> =
            (0..strips).filter(|&g| g == strip || reached(g)).map(|g| &self.strips[g]).collect();
        let able: Vec<usize> = (0..nics)
            .filter(|&nic| competing.iter().any(|competitor| competitor.weights[nic].is_some()))
            .collect();
        let needed =
            competing.iter().fold(0_u64, |sum, s| sum.saturating_add(s.least.saturating_mul(s.pages)));
        let left = able.iter().fold(0_u64, |sum, &nic| sum.saturating_add(self.nics[nic].pte_left));
        let most = able.iter().copied().max_by_key(|&nic| (self.nics[nic].pte_left, std::cmp::Reverse(nic)));
        let this = &self.strips[strip];
        Error::DoesNotFit {
            buffer: this.parts.first().map_or(0, |part| part.buffer),
            location: this.location,
            at_least: usize::try_from(this.least).unwrap_or(usize::MAX),
            needed,
            left,
            nics: able.len(),
            nic: most.map_or_else(String::new, |nic| self.nics[nic].name.clone()),
            nic_left: most.map_or(0, |nic| self.nics[nic].pte_left),
            remedy: remedy(&competing, left, able.len() as u64),
        }
    }
}

/// What would make it fit, the least intrusive first.
fn remedy(competing: &[&Strip], left: u64, nics: u64) -> String {
    let needed_with = |page: PageSize, copies: Option<u64>| {
        competing.iter().fold(0_u64, |sum, strip| {
            let pages: u64 = strip.parts.iter().fold(0, |sum, part| {
                let larger = !strip.location.is_device() && page > part.run.page;
                let page = if larger { page } else { part.run.page };
                sum.saturating_add(page.pages_touched(part.run.addr, part.run.len_bytes))
            });
            sum.saturating_add(pages.saturating_mul(copies.unwrap_or(strip.least)))
        })
    };
    let base = PageSize::new(512).unwrap_or(PageSize::K4);
    let mut remedies = Vec::new();
    for page in [PageSize::M2, PageSize::G1] {
        let needed = needed_with(page, None);
        if needed <= left && needed < needed_with(base, None) {
            remedies.push(format!("use {page} pages (then {} are needed)", units::count(needed)));
            break;
        }
    }
    if competing.iter().any(|strip| strip.least > 1) && needed_with(base, Some(1)) <= left {
        let needed = units::count(needed_with(base, Some(1)));
        remedies.push(format!("allow fewer NICs per byte (on one each, {needed} are needed)"));
    }
    let missing = needed_with(base, None).saturating_sub(left).div_ceil(nics.max(1));
    remedies.push(format!(
        "raise the budget by {} on each NIC if the cards have room",
        units::count(missing.max(1))
    ));
    remedies.push("register less".to_owned());
    remedies.join(", or ")
}
