//! One node's data plane: where a packet goes, names, forwards and discards.
