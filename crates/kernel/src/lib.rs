//! Every syscall of terok.
