from tests.harness import serve, environ
async def test_x(database, tmp_path):
    s = serve(environ(tmp_path, database, None))
    print(s.lines)
    assert s.stop() == 0
    print(s.process.stdout.read())
