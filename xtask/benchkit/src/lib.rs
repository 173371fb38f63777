//! Interleaved measurement, confidence intervals and report rows of the benchmarks.
