"""The server app: an ordinary one."""

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from task import FEW, LR, Held, build, everything


def server(held: Held = FEW, rounds: int = 2) -> ServerApp:
    """A server app that averages."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=held.clients, min_available_nodes=held.clients)
        net = build(len(everything(held.data).classes))
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(net.state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord({"lr": LR}),
        )

    return app


app = server()
