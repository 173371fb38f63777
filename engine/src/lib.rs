//! Named segments of memory, moved between machines over the best path there is
