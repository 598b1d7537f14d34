//! End to end on real Podman: what must be shown, one module for each promise. Attack ids (A1 …) are those of SECURITY.md.

mod egress;
