"""How a plan is carried out: the one machine that applies it to values, labels them, audits and hands them on."""
