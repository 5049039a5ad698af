def test_x(tiny_store): assert len(tiny_store.items)==42
