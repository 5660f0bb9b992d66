"""Operations on one device: a plain reference in torch and, where compiled, a faster kernel."""
