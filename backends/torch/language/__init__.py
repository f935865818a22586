"""Language models of transformers, which no other room imports: frozen ones that answer, and a tiny stand-in."""
