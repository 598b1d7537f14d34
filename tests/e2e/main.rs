//! End to end on real Podman: what must be shown, one module for each promise. The ids A1 … are attacks (tests/README.md).

mod birth;
mod cards;
mod egress;
mod expect;
mod floods;
mod guards;
mod host;
mod install;
mod launcher;
mod lifecycle;
mod live;
mod networks;
mod operator;
mod published;
mod rebinding;
mod shared;
mod tools;
